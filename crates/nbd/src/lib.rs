//! NBD protocol: codec, client and server.
