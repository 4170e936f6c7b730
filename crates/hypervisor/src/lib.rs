//! The port to whatever runs VMs, and its embedded driver.
