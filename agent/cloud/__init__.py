"""What is AWS IoT Core's: identity, policy, link, device shadow, set-up."""
