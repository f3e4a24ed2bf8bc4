"""What every command shares: how it starts and ends, what it says of a wrong flag, stop signals and
the progress line. Only this package and the commands read flags."""
