//! The qcow2 images that Lifeboat writes and reads.
