//! The CRC-32 of GUID partition tables (UEFI 2.10, 5.3.2): that of IEEE 802.3, bits reflected, taken
//! over as many pieces as the bytes come in. Used with [`super::gpt`].

/// The polynomial of IEEE 802.3, reflected.
const POLYNOMIAL: u32 = 0xedb8_8320;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut rest, mut bit) = (byte as u32, 0);
        while bit < 8 {
            rest = if rest & 1 == 0 { rest >> 1 } else { rest >> 1 ^ POLYNOMIAL };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
}

/// A checksum over the bytes so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crc32(u32);

impl Crc32 {
    /// Over no bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self(!0)
    }

    /// Over these bytes too.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let step = |rest: u32, byte: &u8| rest >> 8 ^ TABLE[usize::from(rest as u8 ^ byte)];
        Self(bytes.iter().fold(self.0, step))
    }

    /// What it is.
    #[must_use]
    pub const fn value(self) -> u32 {
        !self.0
    }
}

impl Default for Crc32 {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Crc32;

    #[test]
    fn it_is_the_crc_of_the_standard_in_one_piece_or_several() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(Crc32::new().with(b"123456789").value(), 0xcbf4_3926);
        assert_eq!(Crc32::new().with(b"1234").with(b"").with(b"56789").value(), 0xcbf4_3926);
        assert_eq!(Crc32::new().value(), 0);
    }
}
