"""Many cases at a time: nothing lost, nothing mixed up, and whatever breaks off goes on where it was."""
