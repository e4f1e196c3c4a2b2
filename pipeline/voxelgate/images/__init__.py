"""Volume files and pictures in, label maps out; what an image of a data set consists of."""
