"""What runs on the device itself: the private store."""
