"""Getting a model onto the device: fetch, verify, convert to int8 ONNX, self-test, install."""
