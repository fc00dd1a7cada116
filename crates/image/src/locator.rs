//! Parent locators: platform-specific paths to the parent, and the names in UTF-16 they are made of.

use std::fmt;

use crate::SECTOR;
use crate::bytes::Fields;

/// How a locator's path is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// `W2ru`: a relative Windows path in UTF-16, little-endian.
    RelativePath,
    /// `W2ku`: an absolute Windows path in UTF-16, little-endian. Xen's tools put a relative one here.
    AbsolutePath,
    /// `MacX`: a `file://` URL in UTF-8.
    FileUrl,
    /// Anything else; kept, not understood.
    Other([u8; 4]),
}

impl Platform {
    fn of(code: [u8; 4]) -> Self {
        match &code {
            b"W2ru" => Self::RelativePath,
            b"W2ku" => Self::AbsolutePath,
            b"MacX" => Self::FileUrl,
            _ => Self::Other(code),
        }
    }

    /// The four bytes that stand in the header.
    #[must_use]
    pub fn code(self) -> [u8; 4] {
        match self {
            Self::RelativePath => *b"W2ru",
            Self::AbsolutePath => *b"W2ku",
            Self::FileUrl => *b"MacX",
            Self::Other(code) => code,
        }
    }
}

/// One of the header's eight places for locators: where the path stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatorEntry {
    /// How the path is written.
    pub platform: Platform,
    /// Space kept for it, raw; see [`LocatorEntry::space_bytes`].
    pub data_space: u32,
    /// Length of the path in bytes.
    pub data_len: u32,
    /// Byte offset of the path.
    pub data_offset: u64,
}

impl LocatorEntry {
    /// Length of the structure.
    pub const LEN: usize = 24;
    /// An unused place.
    pub const UNUSED: Self =
        Self { platform: Platform::Other([0; 4]), data_space: 0, data_len: 0, data_offset: 0 };

    pub(crate) fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let mut fields = Fields::of(bytes);
        let platform = Platform::of(fields.take());
        let data_space = fields.u32();
        let data_len = fields.u32();
        let _reserved = fields.u32();
        Self { platform, data_space, data_len, data_offset: fields.u64() }
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LEN);
        out.extend_from_slice(&self.platform.code());
        out.extend_from_slice(&self.data_space.to_be_bytes());
        out.extend_from_slice(&self.data_len.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.data_offset.to_be_bytes());
        out
    }

    /// Whether the place holds a locator.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.platform != Platform::Other([0; 4])
    }

    /// Bytes kept for the path. The specification counts sectors, while Windows and most others
    /// write bytes: a number too small to be a sector in bytes is taken as sectors.
    #[must_use]
    pub fn space_bytes(&self) -> u64 {
        let space = u64::from(self.data_space);
        let space = if space < SECTOR { space.saturating_mul(SECTOR) } else { space };
        space.max(u64::from(self.data_len))
    }
}

/// A parent locator with its path.
#[derive(Clone, PartialEq, Eq)]
pub struct Locator {
    /// How the path is written.
    pub platform: Platform,
    /// The path's bytes, as the platform writes them.
    pub data: Vec<u8>,
}

impl Locator {
    /// A locator whose path is in UTF-16, little-endian.
    #[must_use]
    pub fn wide(platform: Platform, path: &str) -> Self {
        Self { platform, data: path.encode_utf16().flat_map(u16::to_le_bytes).collect() }
    }

    /// The path to show or to follow; unpaired surrogates and bad UTF-8 become U+FFFD.
    #[must_use]
    pub fn path(&self) -> String {
        match self.platform {
            Platform::RelativePath | Platform::AbsolutePath => {
                WideName::from_le_bytes(&self.data).to_string()
            }
            Platform::FileUrl | Platform::Other(_) => {
                let text = String::from_utf8_lossy(&self.data);
                text.trim_end_matches('\0').to_owned()
            }
        }
    }
}

impl fmt::Debug for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.platform.code().escape_ascii(), self.path())
    }
}

/// A name in UTF-16 as Windows keeps it: it may hold unpaired surrogates, which survive a round trip.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct WideName(pub Vec<u16>);

impl WideName {
    /// From big-endian bytes, up to the first zero.
    #[must_use]
    pub fn from_be_bytes(bytes: &[u8]) -> Self {
        Self::from_units(bytes, u16::from_be_bytes)
    }

    /// From little-endian bytes, up to the first zero.
    #[must_use]
    pub fn from_le_bytes(bytes: &[u8]) -> Self {
        Self::from_units(bytes, u16::from_le_bytes)
    }

    /// In big-endian bytes, without a closing zero.
    #[must_use]
    pub fn to_be_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|unit| unit.to_be_bytes()).collect()
    }

    /// Whether the name is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn from_units(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Self {
        let (pairs, _odd_byte) = bytes.as_chunks::<2>();
        Self(pairs.iter().map(|pair| unit(*pair)).take_while(|unit| *unit != 0).collect())
    }
}

impl From<&str> for WideName {
    fn from(text: &str) -> Self {
        Self(text.encode_utf16().collect())
    }
}

impl fmt::Display for WideName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf16_lossy(&self.0))
    }
}

impl fmt::Debug for WideName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}
