"""What a lab is shown with: grids of images, figures, and the one page that holds them all."""
