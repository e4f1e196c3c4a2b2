"""What people look at while a network trains and after: pictures of cases, a page of progress, one of all folds."""
