"""Files: images of any kind in and out, grids of images, writing that a kill cannot cut in half."""
