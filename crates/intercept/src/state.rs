// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything that answering a call needs.

use std::collections::HashMap;
use std::ffi::CString;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use caller::FileId;
use rustix::io::Errno;

use crate::events::Events;
use crate::farm::Farm;
use crate::files::{Backing, Files, InodeId};
use crate::hold::Hold;
use crate::ints::IntSet;
use crate::launch::mount_node;
use crate::parked::Parked;
use crate::processes::Processes;
use crate::{FileKind, Isolation, Kernel, Waker};

/// Everything that answering a call needs.
pub(crate) struct State {
    /// The pretend kernel.
    pub(crate) kernel: Box<dyn Kernel>,
    /// Open files.
    pub(crate) files: Files,
    /// Processes.
    pub(crate) processes: Processes,
    /// Numbers that descriptors of queues have.
    pub(crate) queues: Range<i32>,
    /// Eventfds made for the program.
    pub(crate) events: Events,
    /// The fake tree.
    pub(crate) farm: Farm,
    /// Finds the memory behind the program's addresses.
    pub(crate) pinner: Arc<sys::pin::Pinner>,
    /// Attributes that the program opened for writing, by inode.
    pub(crate) attributes: HashMap<InodeId, String>,
    /// Working directories inside the fake tree, by pid; `None`: the real one
    /// counts (paths mode).
    pub(crate) directories: HashMap<i32, Option<String>>,
    /// Directories that hold names of the machine and fake ones (paths mode).
    pub(crate) composed: Vec<String>,
    /// Which way the program was started.
    pub(crate) isolation: Isolation,
    /// Path of the fake tree on the machine (paths mode).
    pub(crate) farm_path: String,
    /// Whether attributes take stores.
    pub(crate) sysfs_writable: bool,
    /// Open files that take messages.
    pub(crate) messages: IntSet<FileId>,
    /// Statuses of processes have the pretend kernel's figures.
    pub(crate) process_figures: bool,
    /// Namespaces of the program, for mounts that come later.
    pub(crate) namespaces: Vec<OwnedFd>,
    /// Calls that wait.
    pub(crate) parked: Parked,
    /// Has the side thread look after calls that wait.
    pub(crate) nudge: Waker,
    /// Threads that wait at mapped BARs.
    pub(crate) hold: Hold,
    /// The tree that the farm shows.
    pub(crate) generation: u64,
}

impl State {
    /// Tells the kernel of files that were closed.
    pub(crate) fn release_closed(&mut self) {
        for file in self.files.take_closed() {
            if !self.parked.defers(file) {
                self.release(file);
            }
        }
    }

    /// Tells the kernel that a file is no longer open.
    pub(crate) fn release(&mut self, file: FileId) {
        tracing::debug!(target: "vfuse::call", file = file.0, "released");
        self.messages.remove(&file);
        self.kernel.release(file);
    }

    /// Everything is over: releases what is left.
    pub(crate) fn release_all(&mut self) {
        self.release_closed();
        self.drop_parked();
        for file in self.files.all() {
            self.kernel.release(file);
        }
    }

    /// A thread, or a whole process if it is the first one, has ended.
    pub(crate) fn ended(&mut self, tid: i32) {
        self.processes.ended(tid);
        self.directories.remove(&tid);
    }

    /// Makes the description of a new file. On failure the file is released.
    pub(crate) fn describe(&mut self, file: FileId) -> Result<(OwnedFd, FileKind), uapi::Errno> {
        self.describe_as(file, Backing::Device)
    }

    /// The same for a file that has taken the place of a stand-in.
    pub(crate) fn describe_node(&mut self, file: FileId) -> Result<(OwnedFd, FileKind), uapi::Errno> {
        self.describe_as(file, Backing::Own)
    }

    fn describe_as(
        &mut self,
        file: FileId,
        backing: fn(Arc<OwnedFd>) -> Backing,
    ) -> Result<(OwnedFd, FileKind), uapi::Errno> {
        let device = self.kernel.device_file(file).map(|device| device_memfd(&device));
        let made = match device {
            Some(None) => Err(Errno::NXIO),
            Some(Some(memfd)) => self.files.create(file, backing(memfd)),
            None => self.files.create(file, Backing::Handle),
        };
        match made {
            Ok(description) => {
                let kind = self.kernel.kind(file).unwrap_or(FileKind::Other);
                if matches!(kind, FileKind::VhostVdpa | FileKind::AerInject) {
                    self.messages.insert(file);
                }
                Ok((description, kind))
            }
            Err(errno) => {
                tracing::warn!(target: "vfuse::run", file = file.0, %errno, "cannot make a descriptor for the program");
                self.kernel.release(file);
                Err(crate::listener::to_core(errno))
            }
        }
    }

    /// Shows the program a tree that has changed.
    pub(crate) fn refresh_tree(&mut self) {
        let generation = self.kernel.tree_generation();
        if generation == self.generation {
            for (path, entry) in self.kernel.take_changed_files() {
                if let Err(errno) = self.farm.rewrite(&path, entry) {
                    tracing::warn!(target: "vfuse::run", path, %errno, "the program's view of /sys is out of date");
                }
            }
            return;
        }
        self.generation = generation;
        let tree = self.kernel.tree();
        let changes = self.farm.changes(&tree);
        for path in &changes.old_nodes {
            self.remount(None, path);
        }
        if self.isolation == Isolation::Paths {
            let plan = crate::mounts::plan(&tree, std::path::Path::new("/"));
            self.composed = plan.composed;
            if let Err(errno) = self.farm.add_siblings(&plan.siblings, true) {
                tracing::warn!(target: "vfuse::run", %errno, "the program's view of /sys and /dev lacks names");
            }
        }
        if let Err(errno) = self.farm.update(tree) {
            tracing::warn!(target: "vfuse::run", %errno, "the program's view of /sys and /dev is out of date");
        }
        for path in &changes.new_nodes {
            self.remount(Some(c"/dev/null"), path);
        }
    }

    fn remount(&self, source: Option<&std::ffi::CStr>, path: &str) {
        if self.namespaces.is_empty() {
            return;
        }
        let Ok(target) = CString::new(path) else { return };
        if let Err(errno) = mount_node(&self.namespaces, source, &target) {
            tracing::warn!(target: "vfuse::run", path, %errno, "the node in the program's /dev is not a character device");
        }
    }
}

/// The memfd behind a device's file.
fn device_memfd(device: &Arc<dyn device::DeviceFile>) -> Option<Arc<OwnedFd>> {
    let memfd = sys::window::MemfdFiles::of(device)?;
    memfd.as_fd().try_clone_to_owned().ok().map(Arc::new)
}
