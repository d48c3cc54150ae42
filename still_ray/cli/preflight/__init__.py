"""What commands check and record before anything heavy starts."""
