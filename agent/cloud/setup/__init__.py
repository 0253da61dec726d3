"""`cloud setup`: what a device needs to connect, made in the account and on the device, and repaired."""
