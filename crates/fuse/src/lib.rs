//! darner-fuse
