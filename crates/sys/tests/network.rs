// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Networks of this machine: a TAP interface in a network namespace of the
//! test's own, and a recording of it.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use device::{FRAME_HEADER, Frames, NetPort, Offloads, Wake};
use sys::network::{NoNetwork, Recorder, Tap, TapError};

#[derive(Debug)]
struct Bell(Sender<()>);

impl Wake for Bell {
    fn set_active(&self, _: bool) {}

    fn kick(&self) {
        self.0.send(()).unwrap();
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

/// The calling thread alone enters a network namespace of its own.
fn own_namespace() {
    // SAFETY: no memory is touched; the thread gets another network.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
    ip("link set lo up");
}

/// What comes, until there is something that `wanted` likes.
fn receive(port: &dyn NetPort, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let start = Instant::now();
    loop {
        let mut frames = Frames::new();
        port.receive(0, &mut frames, 64);
        if let Some(found) = frames.iter().find(|frame| wanted(frame)) {
            return found.to_vec();
        }
        assert!(start.elapsed() < Duration::from_secs(20), "nothing came");
        std::thread::yield_now();
    }
}

const OWN: [u8; 6] = [2, 0, 0, 0, 9, 2];

/// A TAP interface that is up at 10.9.9.1, with a neighbour at 10.9.9.2.
fn tap() -> Arc<Tap> {
    own_namespace();
    let tap = Tap::open("vft0", 1).unwrap();
    ip("link set vft0 address 02:00:00:00:09:01");
    ip("addr add 10.9.9.1/24 dev vft0");
    ip("link set vft0 up");
    ip("neigh add 10.9.9.2 lladdr 02:00:00:00:09:02 dev vft0");
    tap
}

fn is_udp_to_us(frame: &[u8]) -> bool {
    frame.get(FRAME_HEADER..FRAME_HEADER + 6) == Some(&OWN) && frame.get(FRAME_HEADER + 23) == Some(&17)
}

/// The answer to a UDP frame: addresses and ports the other way round.
fn answer(frame: &[u8]) -> Vec<u8> {
    let mut answer = frame.to_vec();
    for (one, other, len) in [(12, 18, 6), (38, 42, 4), (46, 48, 2)] {
        for i in 0..len {
            answer.swap(one + i, other + i);
        }
    }
    answer
}

/// Frames come with the header that the driver wants, and go with the one it
/// makes: checksums are left to others or not.
#[test]
fn frames_pass_both_ways() {
    let tap = tap();
    let socket = UdpSocket::bind("10.9.9.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for takes in [Offloads::default(), Offloads::TCP] {
        tap.set_offloads(takes);
        socket.send_to(b"a datagram", "10.9.9.2:99").unwrap();
        let frame = receive(&*tap, is_udp_to_us);
        assert!(frame.ends_with(b"a datagram"));
        assert_eq!(frame[0] & 1, u8::from(takes.checksum), "a partial checksum");
        let mut frames = Frames::new();
        frames.push(&answer(&frame));
        tap.send(0, &mut frames);
        assert!(frames.is_empty());
        let mut buffer = [0; 64];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from.to_string()), (&b"a datagram"[..], "10.9.9.2:99".to_owned()));
    }
    assert_eq!(tap.dropped(), 0);
    let mut frames = Frames::new();
    frames.push(&[0xff; 20]);
    tap.send(0, &mut frames);
    assert_eq!(tap.dropped(), 1, "no such header");
}

/// A device that has looked in vain for long is woken by what comes.
#[test]
fn what_comes_wakes_the_device() {
    let tap = tap();
    let (bell, heard) = channel();
    tap.set_wake(Arc::new(Bell(bell)));
    let socket = UdpSocket::bind("10.9.9.1:0").unwrap();
    for _ in 0..3 {
        // Until the thread waits. Linux itself may send something at first.
        let mut frames = Frames::new();
        for _ in 0..100_000 {
            tap.receive(0, &mut frames, 64);
            frames.clear();
        }
        while heard.try_recv().is_ok() {}
        socket.send_to(b"knock", "10.9.9.2:99").unwrap();
        heard.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(receive(&*tap, is_udp_to_us).ends_with(b"knock"));
    }
}

/// Pairs of queues come and go; an interface that cannot be had says so.
#[test]
fn several_queues_and_none() {
    own_namespace();
    let tap = Tap::open("vft1", 4).unwrap();
    for pairs in [4, 1, 3, 0, 4] {
        tap.set_pairs(pairs);
    }
    assert!(matches!(Tap::open("vft1", 1), Err(TapError::Attach { .. })), "in use");
    assert!(matches!(Tap::open("a-name-of-16-byt", 1), Err(TapError::Name(_))));
    drop(tap);
    drop(Tap::open("vft1", 1).unwrap());
}

/// A recording has a header and each frame, without the virtio header.
#[test]
fn recordings_are_pcap_files() {
    let path = std::env::temp_dir().join(format!("vfuse-recording-{}.pcap", std::process::id()));
    let recorder = Recorder::create(&path, Arc::new(NoNetwork)).unwrap();
    let mut frames = Frames::new();
    frames.push(&[[0; FRAME_HEADER].as_slice(), b"first frame"].concat());
    frames.push(&[[0; FRAME_HEADER].as_slice(), b"second"].concat());
    recorder.send(0, &mut frames);
    assert!(frames.is_empty());
    recorder.receive(0, &mut frames, 64);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(bytes.len(), 24 + 16 + 11 + 16 + 6);
    assert_eq!(bytes[..8], [0xa1b2_3c4d_u32.to_ne_bytes(), (4_u32 << 16 | 2).to_ne_bytes()].concat());
    assert_eq!(bytes[20..24], 1_u32.to_ne_bytes());
    assert_eq!(bytes[32..40], [11_u32.to_ne_bytes(), 11_u32.to_ne_bytes()].concat());
    assert_eq!(&bytes[40..51], b"first frame");
    assert_eq!(&bytes[67..], b"second");
}
