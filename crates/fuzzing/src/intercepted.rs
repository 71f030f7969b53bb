// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Seeds of the target `intercept`, whose body is beside what it decodes
//! (`intercept::fuzzing`): the first byte says what the rest is.

/// Seeds: each names what it is about.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let words = |what: u8, words: &[u64]| {
        [what].into_iter().chain(words.iter().flat_map(|word| word.to_le_bytes())).collect::<Vec<u8>>()
    };
    let text = |what: u8, text: &str| [what].into_iter().chain(text.bytes()).collect::<Vec<u8>>();
    let mut elf = vec![0; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 1, 3);
    vec![
        ("ioctl", words(0, &[16, 3, 0x3b71, 0x7000])),
        ("pread", words(0, &[17, 3, 0x7000, 4, 1 << 45])),
        ("statx", words(0, &[332, u64::MAX - 99, 0x7000, 0x100, 0xfff, 0x8000])),
        ("buffers", words(1, &[0x1000, 4, 0x2000, 8])),
        ("buffers-too-long", words(1, &[0, i64::MAX as u64, 0, 1])),
        ("path-by-link", text(2, "/sys/bus/pci/devices/a/vendor")),
        ("path-in-a-loop", text(2, "/sys/x/../y/")),
        ("path-upwards", text(2, "//sys/./up/../dev/vfio/7")),
        ("path-beyond", text(2, "/sys/out/cpu0/.")),
        ("fdinfo", text(3, "flags:\t02\nlock:\t1: OFDLCK ADVISORY  WRITE -1 00:01:1042 7 7\neventfd-id: 5\n")),
        ("maps", text(3, "1000-4000 rw-s 00002000 00:01 42    /memfd:vfuse (deleted)\n")),
        ("status", text(4, "Name:\tVmLck: 1 kB\nVmLck:\t       4 kB\nVmPin:\t  0 kB\nThreads:\t1\n")),
        ("elf", [vec![5], elf].concat()),
    ]
}
