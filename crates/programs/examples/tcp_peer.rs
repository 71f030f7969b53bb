// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The peer of a guest's network tests: says that it is ready and its process
//! id, then serves until it is killed.
//!
//! | port | what |
//! |---|---|
//! | 5000 | sends the next `CHUNK` MiB of a stream, from where the last connection ended |
//! | 5001 | takes a part of the same stream, from where the last connection ended; answers `right BYTES` or `wrong AT` |
//! | 5002 | answers how many have connected to it |
//!
//! So a guest that passes on what it reads from 5000 to 5001 is seen to have
//! moved every byte twice, in order, over any number of connections. After
//! something wrong 5001 goes on at what 5000 sends next.
#![allow(clippy::unwrap_used)] // fails by panicking

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const MIB: usize = 1 << 20;

/// The bytes of a MiB of the stream: its number, then what is the same in all.
fn block(number: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..MIB as u64 / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn serve(port: u16, mut one: impl FnMut(&mut TcpStream) + Send + 'static) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            one(&mut stream.unwrap());
        }
    });
}

fn main() {
    let chunk: u64 = std::env::args().nth(1).expect("tcp_peer CHUNK").parse().unwrap();
    static SENT: AtomicU64 = AtomicU64::new(0);
    static TAKEN: Mutex<u64> = Mutex::new(0);
    let mut bytes = block(0);
    serve(5000, move |to| {
        for _ in 0..chunk {
            bytes[..8].copy_from_slice(&SENT.load(Ordering::SeqCst).to_le_bytes());
            if to.write_all(&bytes).is_err() {
                break;
            }
            SENT.fetch_add(1, Ordering::SeqCst);
        }
    });
    let (mut wanted, mut got) = (block(0), vec![0; MIB]);
    serve(5001, move |from| {
        let mut taken = TAKEN.lock().unwrap();
        let mut count = 0;
        let answer = loop {
            wanted[..8].copy_from_slice(&taken.to_le_bytes());
            let mut have = 0;
            while have < MIB {
                match from.read(&mut got[have..]) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => have += n,
                }
            }
            if got[..have] != wanted[..have] || have % MIB != 0 {
                break format!("wrong {}\n", count + have);
            }
            if have == 0 {
                break format!("right {count}\n");
            }
            (*taken, count) = (*taken + 1, count + have);
        };
        if answer.starts_with("wrong") {
            *taken = SENT.load(Ordering::SeqCst);
        }
        let _ = from.write_all(answer.as_bytes());
    });
    let mut count = 0;
    serve(5002, move |to| {
        count += 1;
        let _ = writeln!(to, "{count}");
    });
    println!("ready {}", std::process::id());
    loop {
        thread::park();
    }
}
