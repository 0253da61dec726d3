"""The signed repository of packs: made by `keys` and `publishing`, read by `client`."""
