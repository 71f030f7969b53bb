// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A minimal vhost-user-blk backend on rust-vmm's crates: one queue, reads of a
//! file and nothing else, each a `pread` into the driver's memory on the thread
//! that hears the kicks. `vhost_user_blk SOCKET FILE` serves one driver.

use std::env;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::{DescriptorChain, QueueOwnedT as _, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestAddressSpace as _, GuestMemoryAtomic, GuestMemoryBackend as _};
use vmm_sys_util::epoll::EventSet;

type Mmap = vm_memory::GuestMemoryMmap<()>;

const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const EVENT_IDX: u64 = 1 << 29;
const QUEUE_SIZE: usize = 1024;
const SECTOR: u64 = 512;
const STATUS_OK: u8 = 0;
const STATUS_UNSUPPORTED: u8 = 2;
const READ: u32 = 0;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let [_, socket, file] = &arguments[..] else { panic!("usage: vhost_user_blk SOCKET FILE") };
    let file = File::open(file).expect("a disk");
    let capacity = file.metadata().expect("its size").len() / SECTOR;
    let memory = GuestMemoryAtomic::new(Mmap::new());
    let disk = Disk { file, capacity, memory: memory.clone() };
    let disk = Arc::new(Mutex::new(disk));
    let mut daemon = VhostUserDaemon::new("blk".into(), disk, memory).expect("a daemon");
    daemon.serve(socket).expect("served");
    // Its thread waits for kicks.
    std::process::exit(0);
}

struct Disk {
    file: File,
    capacity: u64,
    memory: GuestMemoryAtomic<Mmap>,
}

impl Disk {
    /// Carries out a request; bytes written to the driver's memory.
    fn request(&self, memory: &Mmap, chain: DescriptorChain<&Mmap>) -> io::Result<u32> {
        let mut header = None;
        let mut parts: [Option<(GuestAddress, usize)>; 8] = [None; 8];
        let mut count = 0;
        for part in chain {
            if part.is_write_only() {
                *parts.get_mut(count).ok_or(io::ErrorKind::InvalidData)? = Some((part.addr(), part.len() as usize));
                count += 1;
            } else {
                header = header.or(Some(part.addr()));
            }
        }
        let header = header.ok_or(io::ErrorKind::InvalidData)?;
        let [kind, _, low, high]: [u32; 4] = memory.read_obj(header).map_err(io::Error::other)?;
        let (status, data) = parts[..count].split_last().ok_or(io::ErrorKind::InvalidData)?;
        let (status, _) = status.ok_or(io::ErrorKind::InvalidData)?;
        let mut at = (u64::from(high) << 32 | u64::from(low)) * SECTOR;
        if kind != READ {
            memory.write_obj(STATUS_UNSUPPORTED, status).map_err(io::Error::other)?;
            return Ok(1);
        }
        let mut done = 1;
        for (address, len) in data.iter().flatten() {
            let slice = memory.get_slice(*address, *len).map_err(io::Error::other)?;
            let guard = slice.ptr_guard_mut();
            // SAFETY: the slice is mapped as long as `memory`; the driver leaves
            // it alone while the request is out.
            let bytes = unsafe { std::slice::from_raw_parts_mut(guard.as_ptr(), *len) };
            if rustix::io::pread(&self.file, bytes, at)? != *len {
                return Err(Errno::IO.into());
            }
            at += *len as u64;
            done += *len as u32;
        }
        memory.write_obj(STATUS_OK, status).map_err(io::Error::other)?;
        Ok(done)
    }

    /// Carries out what is in the queue.
    fn drain(&self, ring: &VringRwLock) -> io::Result<()> {
        let memory = self.memory.memory();
        let mut ring = ring.get_mut();
        loop {
            let mut used = false;
            loop {
                let chain = ring.get_queue_mut().iter(&*memory).map_err(io::Error::other)?.next();
                let Some(chain) = chain else { break };
                let head = chain.head_index();
                let done = self.request(&memory, chain)?;
                ring.get_queue_mut().add_used(&*memory, head, done).map_err(io::Error::other)?;
                used = true;
            }
            if used && ring.needs_notification().map_err(io::Error::other)? {
                ring.signal_used_queue()?;
            }
            if !ring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}

impl VhostUserBackendMut for Disk {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    // The ring knows.
    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut config = self.capacity.to_le_bytes().to_vec();
        config.resize((offset + size).max(8) as usize, 0);
        config[offset as usize..(offset + size) as usize].to_vec()
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<Mmap>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn handle_event(&mut self, _event: u16, _set: EventSet, rings: &[VringRwLock], _thread: usize) -> io::Result<()> {
        self.drain(&rings[0])
    }
}
