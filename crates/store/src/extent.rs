//! pieces (being written)

/// Where some bytes of an object are: a run within one stored extent, or a hole. (fields private; opaque to users)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Byte offset in the object.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// None: a hole, which reads as zeroes.
    pub(crate) place: Option<()>,
}

impl Piece {
    /// Whether the piece holds data (false: a hole).
    pub fn is_data(&self) -> bool {
        self.place.is_some()
    }
}

/// unused
pub struct Hole;
