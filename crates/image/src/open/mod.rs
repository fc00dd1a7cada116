//! Opening a file: a state machine that asks for bytes and ends with a [`LayerImage`].
//!
//! ```text
//! Own       page 0 ──► (tail footer, if the copy in page 0 is torn) ──► locators ──► done
//! OwnFixed  footer at the end ──► done
//! Foreign   end ──► start ──► dynamic header ──► block map of Xen's tools ──► locators ──► done
//! ```
//! Why the caller says whom it trusts: all but a few bytes of a file are written by a guest. In a
//! dynamic file that was not closed, the last sector is a guest's, and it may have forged a footer
//! there; in a fixed file the *first* sector is a guest's. Guessing the kind from the bytes would let
//! a guest choose it, and with it the parent, so files of ours are opened as what the record says.

mod foreign;
mod own;

use crate::{FormatError, LayerImage, Result};

/// Whose file it is, and so which bytes of it can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A dynamic or differencing layer that Shale wrote: the headers at the start decide.
    Own,
    /// A fixed layer that Shale wrote: the footer at the end decides.
    OwnFixed,
    /// A file from elsewhere: footers are looked for wherever tools have put them.
    Foreign,
}

/// What the opener needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read `len` bytes at byte `at`, which lie within the file, and hand them to
    /// [`Opener::supply`].
    Read {
        /// Byte offset.
        at: u64,
        /// Bytes; at most 64 KiB.
        len: u64,
    },
    /// The file is open.
    Done(LayerImage),
}

/// Opens a file without doing I/O itself.
///
/// ```
/// # fn read(file: &[u8], at: u64, len: u64) -> &[u8] { &file[at as usize..][..len as usize] }
/// # fn open(file: &[u8]) -> image::Result<image::LayerImage> {
/// let mut opener = image::Opener::new(file.len() as u64, image::Trust::Foreign);
/// loop {
///     match opener.step()? {
///         image::Step::Read { at, len } => opener.supply(read(file, at, len))?,
///         image::Step::Done(layer) => return Ok(layer),
///     }
/// }
/// # }
/// # assert!(open(&[0; 4096]).is_err());
/// ```
#[derive(Debug)]
pub struct Opener {
    file_len: u64,
    asked: Option<(u64, u64)>,
    supplied: Option<Vec<u8>>,
    state: State,
}

#[derive(Debug)]
enum State {
    Own(own::Own),
    Foreign(foreign::Foreign),
}

/// What a state wants: more bytes, or nothing.
enum Want {
    Bytes { at: u64, len: u64, structure: &'static str },
    Done(LayerImage),
}

impl Opener {
    /// Starts to open a file of `file_len` bytes.
    #[must_use]
    pub fn new(file_len: u64, trust: Trust) -> Self {
        let state = match trust {
            Trust::Own => State::Own(own::Own::sparse()),
            Trust::OwnFixed => State::Own(own::Own::fixed()),
            Trust::Foreign => State::Foreign(foreign::Foreign::new()),
        };
        Self { file_len, asked: None, supplied: None, state }
    }

    /// What to do next. Asks the same again until bytes are supplied.
    ///
    /// # Errors
    /// If the file is no image, or is damaged beyond what can be put right.
    pub fn step(&mut self) -> Result<Step> {
        if let (Some((at, len)), None) = (self.asked, &self.supplied) {
            return Ok(Step::Read { at, len });
        }
        let supplied = self.supplied.take();
        let want = match &mut self.state {
            State::Own(state) => state.next(self.file_len, supplied)?,
            State::Foreign(state) => state.next(self.file_len, supplied)?,
        };
        match want {
            Want::Done(image) => Ok(Step::Done(image)),
            Want::Bytes { at, len, structure } => {
                if at.checked_add(len).is_none_or(|end| end > self.file_len) {
                    return Err(FormatError::OutsideFile {
                        structure,
                        at,
                        len,
                        file_len: self.file_len,
                    });
                }
                self.asked = Some((at, len));
                Ok(Step::Read { at, len })
            }
        }
    }

    /// Takes the bytes that the last [`Step::Read`] asked for.
    ///
    /// # Errors
    /// If there are fewer: the file is shorter than it was said to be.
    ///
    /// # Panics
    /// If nothing was asked for.
    pub fn supply(&mut self, bytes: &[u8]) -> Result<()> {
        let Some((at, len)) = self.asked else {
            unreachable!("bytes were supplied to an opener that had asked for none")
        };
        let got = bytes.len() as u64;
        if got != len {
            return Err(FormatError::ShortRead { at, wanted: len, got });
        }
        self.supplied = Some(bytes.to_vec());
        Ok(())
    }
}

/// `N` bytes at `at` of something that was read in full before.
fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}
