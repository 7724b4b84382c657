"""What every service stands on: settings, the gRPC server with its interceptor, identity, logs, metrics, signals."""
