//! The darner command.
fn main() {}
