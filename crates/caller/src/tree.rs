// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The part of `/dev`, `/sys` and `/proc` that a lab replaces, as data.
//!
//! A front door shows it to programs in its own way (mounts, redirected
//! paths). Paths are absolute; every directory on the way is an entry.

use std::collections::BTreeMap;
use std::fmt;

/// A character device of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// `/dev/vfio/vfio` (API-007).
    VfioContainer,
    /// `/dev/vfio/N` (API-034).
    VfioGroup(u32),
    /// `/dev/vfio/noiommu-N` (GRP-057).
    VfioNoIommuGroup(u32),
    /// `/dev/vfio/devices/vfioN` (API-102).
    VfioCdev(u32),
    /// `/dev/iommu` (IOMMUFD-1.1).
    Iommufd,
    /// `/dev/vhost-vdpa-N` (VDPA-1.1).
    VhostVdpa(u32),
    /// `/dev/aer_inject` (ERR-059).
    AerInject,
}

/// Its path below `/dev`.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::VfioContainer => f.write_str("vfio/vfio"),
            Node::VfioGroup(group) => write!(f, "vfio/{group}"),
            Node::VfioNoIommuGroup(group) => write!(f, "vfio/noiommu-{group}"),
            Node::VfioCdev(number) => write!(f, "vfio/devices/vfio{number}"),
            Node::Iommufd => f.write_str("iommu"),
            Node::VhostVdpa(number) => write!(f, "vhost-vdpa-{number}"),
            Node::AerInject => f.write_str("aer_inject"),
        }
    }
}

/// Major and minor number that `dev` attributes tell for every node: those of
/// `/dev/null`, which front doors put in the place of nodes (GRP-059).
pub const NODE_DEVICE: (u32, u32) = (1, 3);

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory {
        /// Whether it replaces the machine's directory of that name with all
        /// that is in it; else both show.
        own: bool,
    },
    /// A file. `writable`: storing to it reaches the pretend kernel.
    File {
        /// What reading gives.
        content: Vec<u8>,
        /// Permission bits.
        mode: u16,
        /// Whether it can be written.
        writable: bool,
    },
    /// A symbolic link.
    Link(String),
    /// A character device.
    Device(Node),
}

/// Entries by absolute path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// What stands where. Directories that are not here merge with the real
    /// ones.
    pub entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// All entries, parents before children.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// The entry at a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// A directory that replaces the machine's.
    pub fn own(&mut self, path: &str) {
        self.add(path, Entry::Directory { own: true });
    }

    /// A text file that only reads.
    pub fn text(&mut self, path: String, content: impl Into<String>) {
        self.add(&path, Entry::File { content: content.into().into_bytes(), mode: 0o444, writable: false });
    }

    /// An attribute that can be stored to; `content` is `None` if it cannot be read.
    pub fn attribute(&mut self, path: String, content: Option<String>) {
        let mode = if content.is_some() { 0o644 } else { 0o200 };
        let content = content.unwrap_or_default().into_bytes();
        self.add(&path, Entry::File { content, mode, writable: true });
    }

    /// A file of this content.
    pub fn binary(&mut self, path: String, content: Vec<u8>, mode: u16) {
        self.add(&path, Entry::File { content, mode, writable: false });
    }

    /// A link at `path` to the absolute path `target`, stored relative as
    /// sysfs does.
    pub fn link(&mut self, path: &str, target: &str) {
        let from: Vec<&str> = path.split('/').collect();
        let to: Vec<&str> = target.split('/').collect();
        // The target's own name is always told, also where the link is below it.
        let common = from.iter().zip(&to[..to.len() - 1]).take_while(|(a, b)| a == b).count();
        let up = from.len() - common - 1;
        let parts: Vec<&str> = std::iter::repeat_n("..", up).chain(to[common..].iter().copied()).collect();
        self.add(path, Entry::Link(parts.join("/")));
    }

    /// A file with these permissions.
    pub fn file(&mut self, path: impl Into<String>, mode: u16, content: impl Into<Vec<u8>>) {
        let writable = mode & 0o222 != 0;
        self.add(&path.into(), Entry::File { content: content.into(), mode, writable });
    }

    /// A link of this text.
    pub fn symlink(&mut self, path: impl Into<String>, target: impl Into<String>) {
        self.add(&path.into(), Entry::Link(target.into()));
    }

    /// A character device where it belongs.
    pub fn node(&mut self, node: Node) {
        self.add(&format!("/dev/{node}"), Entry::Device(node));
    }

    /// A character device.
    pub fn device(&mut self, path: &str, node: Node) {
        self.add(path, Entry::Device(node));
    }

    fn add(&mut self, path: &str, entry: Entry) {
        let mut end = 0;
        while let Some(next) = path[end + 1..].find('/') {
            end += 1 + next;
            self.entries.entry(path[..end].to_owned()).or_insert(Entry::Directory { own: false });
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_relative_and_directories_are_made() {
        let mut tree = Tree::default();
        tree.link("/sys/bus/pci/devices/0000:01:00.0", "/sys/devices/pci0000:00/0000:01:00.0");
        let link = tree.get("/sys/bus/pci/devices/0000:01:00.0");
        assert_eq!(link, Some(&Entry::Link("../../../devices/pci0000:00/0000:01:00.0".into())));
        assert_eq!(tree.get("/sys/bus/pci"), Some(&Entry::Directory { own: false }));
        assert_eq!(tree.get("/sys/devices"), None);
    }
}
