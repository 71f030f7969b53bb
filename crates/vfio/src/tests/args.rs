// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The argsz rule, strings and capability chains: API-003 to API-006.

use uapi::Errno;
use uapi::vfio::group::Status;
use uapi::vfio::type1::Info;

use crate::args::{InfoChain, read, read_plain, read_string, write_prefix};
use crate::testing::Client;

const HOLE: u64 = 0x5000_0000_1000;

/// A program whose memory ends at `HOLE`.
fn client() -> Client {
    let client = Client::new(1);
    client.memory.map(HOLE - 4096, 4096, true);
    client
}

/// API-003: the fault comes first, then argsz; a larger argsz is fine.
#[test]
fn argsz_rule() {
    let client = client();
    assert_eq!(read::<Status>(&client, HOLE - 4, 8), Err(Errno::EFAULT));
    assert_eq!(read::<Status>(&client, u64::MAX - 3, 8), Err(Errno::EFAULT));
    for (argsz, expected) in [(0, Err(Errno::EINVAL)), (7, Err(Errno::EINVAL)), (8, Ok(8)), (u32::MAX, Ok(u32::MAX))] {
        let arg = client.put(&Status { argsz, flags: 5 });
        assert_eq!(read::<Status>(&client, arg, 8).map(|s| s.argsz), expected);
    }
}

#[test]
fn bytes_behind_minsz_are_not_read() {
    let client = client();
    let arg = HOLE - 16;
    write_prefix(&client, arg, &Info { argsz: 24, flags: 1, iova_pgsizes: 2, cap_offset: 3, pad: 4 }, 16).unwrap();
    let info: Info = read(&client, arg, Info::MINSZ).unwrap();
    assert_eq!(info, Info { argsz: 24, flags: 1, iova_pgsizes: 2, cap_offset: 0, pad: 0 });
    assert_eq!(read::<Info>(&client, arg, 24), Err(Errno::EFAULT));
    assert_eq!(read_plain::<u64>(&client, HOLE - 8), Ok(2));
}

/// API-047: unreadable is EFAULT, without end is EINVAL.
#[test]
fn strings() {
    let client = client();
    let text = client.put_str("0000:01:00.0");
    assert_eq!(read_string(&client, text, 4096).unwrap(), b"0000:01:00.0");
    // The NUL is the last readable byte.
    client.memory.map(HOLE - 8192, 4096, true);
    caller::Caller::write(&client, HOLE - 4, b"abc\0").unwrap();
    assert_eq!(read_string(&client, HOLE - 4, 4096).unwrap(), b"abc");
    caller::Caller::write(&client, HOLE - 4, b"abcd").unwrap();
    assert_eq!(read_string(&client, HOLE - 4, 4096), Err(Errno::EFAULT));
    assert_eq!(read_string(&client, 0, 4096), Err(Errno::EFAULT));
    // 4095 characters and the NUL fit, 4096 do not.
    let long = client.put_bytes(&[vec![b'x'; 4095], vec![0]].concat());
    assert_eq!(read_string(&client, long, 4096).unwrap().len(), 4095);
    let longer = client.put_bytes(&[vec![b'x'; 4096], vec![0]].concat());
    assert_eq!(read_string(&client, longer, 4096), Err(Errno::EINVAL));
}

fn chain() -> InfoChain {
    let mut chain = InfoChain::new();
    chain.add(7, 1, &[1, 2, 3]);
    chain.add(9, 2, &[4; 8]);
    chain
}

/// API-004: offsets count from the start of the structure, starts are aligned
/// to 8, 0 ends.
#[test]
fn chain_that_fits() {
    let client = client();
    let arg = client.room(64);
    assert_eq!(chain().place(&client, arg, 24, 64), Ok((64, 24)));
    let bytes = client.get_bytes(arg, 64);
    assert_eq!(bytes[..24], [0; 24]);
    assert_eq!(bytes[24..40], [7, 0, 1, 0, 40, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[40..56], [9, 0, 2, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4]);
    assert_eq!(chain().place(&client, arg, 24, 56), Ok((56, 24)), "exactly");
    assert_eq!(chain().place(&client, HOLE - 24, 24, 56), Err(Errno::EFAULT));
    assert_eq!(chain().place(&client, u64::MAX - 3, 24, 56), Err(Errno::EFAULT));
}

/// API-005: too small gives the size needed and no offset.
#[test]
fn chain_that_does_not_fit() {
    let client = client();
    let arg = client.room(64);
    for argsz in [0, 16, 24, 55] {
        assert_eq!(chain().place(&client, arg, 24, argsz), Ok((56, 0)));
    }
    assert_eq!(client.get_bytes(arg, 64), [0; 64]);
    assert!(InfoChain::new().is_empty() && !chain().is_empty());
    assert_eq!(InfoChain::new().place(&client, arg, 24, 16), Ok((16, 0)));
}
