"""Label maps of many images: one case, batches of them, and the page that shows them."""
