//! darner-fs
