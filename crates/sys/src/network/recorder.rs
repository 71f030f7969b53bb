// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A recording of what passes between a device and its network, as tcpdump and
//! Wireshark read it (pcap with nanoseconds).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use device::{FRAME_HEADER, Frames, NetPort, Offloads, Wake};

/// Magic of a file with nanoseconds, in this machine's byte order.
const MAGIC: u32 = 0xa1b2_3c4d;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;
/// Longest frame that is kept whole.
const SNAP: u32 = 1 << 18;

/// A network, recorded.
#[derive(Debug)]
pub struct Recorder {
    inner: Arc<dyn NetPort>,
    /// `None` once it could not be written.
    out: Mutex<Option<BufWriter<File>>>,
}

impl Recorder {
    /// Records what passes to and from `inner` in a new file at `path`.
    pub fn create(path: &Path, inner: Arc<dyn NetPort>) -> std::io::Result<Arc<Recorder>> {
        let mut out = BufWriter::new(File::create(path)?);
        // Version 2.4, times in UTC.
        let header = [MAGIC, 4 << 16 | 2, 0, 0, SNAP, ETHERNET];
        header.iter().try_for_each(|word| out.write_all(&word.to_ne_bytes()))?;
        out.flush()?;
        Ok(Arc::new(Recorder { inner, out: Mutex::new(Some(out)) }))
    }

    fn record(&self, frames: &Frames) {
        if frames.is_empty() {
            return;
        }
        let mut place = self.out.lock().unwrap_or_else(|e| e.into_inner());
        let Some(out) = &mut *place else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let written = frames.iter().try_for_each(|frame| {
            let frame = frame.get(FRAME_HEADER..).unwrap_or_default();
            let len = frame.len() as u32;
            let header = [now.as_secs() as u32, now.subsec_nanos(), len, len];
            header.iter().try_for_each(|word| out.write_all(&word.to_ne_bytes()))?;
            out.write_all(frame)
        });
        if let Err(error) = written.and_then(|()| out.flush()) {
            tracing::warn!(%error, "the recording of a network ends here");
            *place = None;
        }
    }
}

impl NetPort for Recorder {
    fn offloads(&self) -> Offloads {
        self.inner.offloads()
    }

    fn mtu(&self) -> Option<u16> {
        self.inner.mtu()
    }

    fn send(&self, pair: u16, frames: &mut Frames) {
        self.record(frames);
        self.inner.send(pair, frames);
    }

    fn receive(&self, pair: u16, frames: &mut Frames, limit: usize) {
        self.inner.receive(pair, frames, limit);
        self.record(frames);
    }

    fn set_offloads(&self, offloads: Offloads) {
        self.inner.set_offloads(offloads);
    }

    fn set_pairs(&self, pairs: u16) {
        self.inner.set_pairs(pairs);
    }

    fn is_up(&self) -> bool {
        self.inner.is_up()
    }

    fn set_wake(&self, wake: Arc<dyn Wake>) {
        self.inner.set_wake(wake);
    }
}
