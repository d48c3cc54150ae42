"""What runs inside the sandbox. These modules import the standard library only: they are sent there as text."""
