// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CRC-32C, eight bytes at a time.

/// The polynomial 0x1edc6f41 with its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `TABLES[n][b]`: what byte `b` does to the CRC when `n` bytes follow it.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ ((crc & 1) * POLYNOMIAL);
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[n - 1][byte];
            tables[n][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
}

fn table(n: usize, byte: u32) -> u32 {
    TABLES[n & 7][(byte & 0xff) as usize]
}

/// Takes bytes in, their least significant bit first.
pub(super) fn update(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = crc;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = word.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte)) ^ u64::from(crc);
        crc = (0..8).fold(0, |crc, n| crc ^ table(7 - n, (word >> (8 * n)) as u32));
    }
    words.remainder().iter().fold(crc, |crc, byte| crc >> 8 ^ table(0, crc ^ u32::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::update;

    /// The check value of CRC-32C (RFC 3720 B.4).
    #[test]
    fn known_values() {
        let crc = |bytes: &[u8]| !update(!0, bytes);
        assert_eq!(crc(b"123456789"), 0xe306_9283);
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc(&rising), 0x46dd_794e);
    }

    #[test]
    fn pieces_are_as_good_as_the_whole() {
        let bytes: Vec<u8> = (0..255).collect();
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(update(update(1, a), b), update(1, &bytes), "{cut}");
        }
    }
}
