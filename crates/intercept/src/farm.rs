// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fake tree as real files below a directory: a tmpfs that the program
//! sees, or the scratch directory of paths mode.
//!
//! It is brought up to date in place: files are rewritten, not replaced, so
//! that an open attribute read again from its start gives the new value, as
//! in sysfs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::mounts::Sibling;
use crate::{Entry, Tree};

/// The directory that holds the tree, and what is in it.
#[derive(Debug)]
pub(crate) struct Farm {
    root: OwnedFd,
    tree: Tree,
    /// Directories that were made.
    dirs: BTreeSet<String>,
    /// Those of them that stay for what else is in composed directories.
    fixed: BTreeSet<String>,
}

/// What an update changed that matters to mounts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Paths of nodes that are new.
    pub(crate) new_nodes: Vec<String>,
    /// Paths of nodes that are gone; what is mounted there must go first.
    pub(crate) old_nodes: Vec<String>,
}

impl Farm {
    /// An empty one.
    pub(crate) fn new(root: OwnedFd) -> Farm {
        Farm { root, tree: Tree::default(), dirs: BTreeSet::new(), fixed: BTreeSet::new() }
    }

    /// What is in it.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The directory.
    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Adds the other entries of composed directories: places to mount the
    /// machine's over, or with `links` symlinks to them.
    pub(crate) fn add_siblings(&mut self, siblings: &BTreeMap<String, Sibling>, links: bool) -> Result<(), Errno> {
        for (path, sibling) in siblings {
            self.parents(path)?;
            let at = relative(path);
            match sibling {
                Sibling::Symlink(target) => done(rustix::fs::symlinkat(target.as_str(), &self.root, at))?,
                _ if links => done(rustix::fs::symlinkat(path.as_str(), &self.root, at))?,
                Sibling::Dir => self.dir(path)?,
                Sibling::File => self.file(at, &[], 0o444)?,
            }
        }
        for path in siblings.keys() {
            self.fixed.extend(ancestors(path).map(str::to_owned));
            if self.dirs.contains(path) {
                self.fixed.insert(path.clone());
            }
        }
        Ok(())
    }

    /// What changes from the tree that is there to `new`.
    pub(crate) fn changes(&self, new: &Tree) -> Changes {
        let nodes = |tree: &Tree, other: &Tree| -> Vec<String> {
            let is_node = |entry: Option<&Entry>| matches!(entry, Some(Entry::Device(_)));
            tree.entries
                .iter()
                .filter(|(path, entry)| is_node(Some(entry)) && !is_node(other.entries.get(*path)))
                .map(|(path, _)| path.clone())
                .collect()
        };
        Changes { new_nodes: nodes(new, &self.tree), old_nodes: nodes(&self.tree, new) }
    }

    /// Makes it `new`. Whatever was mounted on entries that go is gone already.
    pub(crate) fn update(&mut self, new: Tree) -> Result<(), Errno> {
        let gone: Vec<String> = self
            .tree
            .entries
            .iter()
            .filter(|(path, old)| new.entries.get(*path).is_none_or(|now| !same_kind(old, now)))
            .map(|(path, _)| path.clone())
            .collect();
        for path in &gone {
            if !matches!(self.tree.entries.remove(path), Some(Entry::Directory { .. })) {
                self.remove(path, AtFlags::empty())?;
            }
        }
        let needed: BTreeSet<&str> = new
            .entries
            .iter()
            .flat_map(|(path, entry)| {
                ancestors(path).chain(matches!(entry, Entry::Directory { .. }).then_some(path.as_str()))
            })
            .collect();
        let unneeded: Vec<String> = self
            .dirs
            .iter()
            .filter(|dir| !needed.contains(dir.as_str()) && !self.fixed.contains(*dir))
            .cloned()
            .collect();
        // Deepest first.
        for path in unneeded.iter().rev() {
            self.remove(path, AtFlags::REMOVEDIR)?;
            self.dirs.remove(path);
        }
        for (path, entry) in &new.entries {
            if self.tree.entries.get(path) == Some(entry) {
                continue;
            }
            self.parents(path)?;
            let at = relative(path);
            match entry {
                Entry::Directory { .. } => self.dir(path)?,
                Entry::File { content: data, mode, .. } => self.file(at, data, u32::from(*mode))?,
                Entry::Link(target) => {
                    let _ = rustix::fs::unlinkat(&self.root, at, AtFlags::empty());
                    rustix::fs::symlinkat(target.as_str(), &self.root, at)?;
                }
                Entry::Device(_) => {
                    if !matches!(self.tree.entries.get(path), Some(Entry::Device(_))) {
                        self.file(at, &[], 0o666)?;
                    }
                }
            }
        }
        self.tree = new;
        Ok(())
    }

    /// Gives a file that is there another content.
    pub(crate) fn rewrite(&mut self, path: &str, entry: Entry) -> Result<(), Errno> {
        let Entry::File { content, mode, .. } = &entry else { return Ok(()) };
        match self.tree.entries.get(path) {
            Some(old @ Entry::File { .. }) if *old != entry => {}
            _ => return Ok(()),
        }
        self.file(relative(path), content, u32::from(*mode))?;
        self.tree.entries.insert(path.to_owned(), entry);
        Ok(())
    }

    fn parents(&mut self, path: &str) -> Result<(), Errno> {
        ancestors(path).try_for_each(|dir| self.dir(dir))
    }

    fn remove(&self, path: &str, flags: AtFlags) -> Result<(), Errno> {
        match rustix::fs::unlinkat(&self.root, relative(path), flags) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    fn dir(&mut self, path: &str) -> Result<(), Errno> {
        if self.dirs.contains(path) {
            return Ok(());
        }
        done(rustix::fs::mkdirat(&self.root, relative(path), Mode::from_raw_mode(0o755)))?;
        self.dirs.insert(path.to_owned());
        Ok(())
    }

    fn file(&self, at: &str, data: &[u8], mode: u32) -> Result<(), Errno> {
        // Its owner must be able to rewrite it, whatever mode the program sees.
        let open = |flags| {
            rustix::fs::openat(&self.root, at, OFlags::WRONLY | OFlags::CLOEXEC | flags, Mode::from_raw_mode(0o600))
        };
        let file = match open(OFlags::CREATE | OFlags::NOFOLLOW) {
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(&self.root, at, Mode::from_raw_mode(0o600), AtFlags::empty())?;
                open(OFlags::NOFOLLOW)?
            }
            other => other?,
        };
        let mut rest = data;
        let mut offset = 0;
        while !rest.is_empty() {
            let n = rustix::io::pwrite(file.as_fd(), rest, offset)?;
            rest = rest.get(n..).unwrap_or_default();
            offset += n as u64;
        }
        rustix::fs::ftruncate(&file, data.len() as u64)?;
        // Not through the umask.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777))
    }
}

fn same_kind(a: &Entry, b: &Entry) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// The directories above an absolute path, outermost first, without the root.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).filter(|dir| !dir.is_empty())
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

fn done(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;
    use crate::scratch::Scratch;

    fn farm() -> (Scratch, Farm) {
        let scratch = Scratch::new("farm").unwrap();
        let farm = Farm::new(scratch.dir().try_clone().unwrap());
        (scratch, farm)
    }

    #[test]
    fn makes_what_the_tree_says() {
        let (scratch, mut farm) = farm();
        let mut tree = Tree::default();
        tree.file("/sys/devices/pci0000:00/a/vendor", 0o444, "0x1b36\n");
        tree.symlink("/sys/bus/pci/devices/a", "../../../devices/pci0000:00/a");
        tree.node(Node::VfioGroup(7));
        farm.update(tree).unwrap();
        let read = |path: &str| std::fs::read_to_string(scratch.path().join(path)).unwrap();
        assert_eq!(read("sys/bus/pci/devices/a/vendor"), "0x1b36\n");
        assert_eq!(read("dev/vfio/7"), "");
    }

    #[test]
    fn updates_in_place() {
        let (scratch, mut farm) = farm();
        let mut tree = Tree::default();
        tree.file("/sys/a/numvfs", 0o444, "0\n");
        tree.own("/sys/a/gone");
        tree.file("/sys/a/gone/x", 0o444, "");
        tree.file("/sys/b/c/x", 0o444, "");
        tree.node(Node::VfioGroup(1));
        farm.update(tree.clone()).unwrap();
        let open = std::fs::File::open(scratch.path().join("sys/a/numvfs")).unwrap();

        let mut next = Tree::default();
        next.file("/sys/a/numvfs", 0o444, "12\n");
        next.file("/sys/a/new", 0o200, "");
        next.node(Node::VfioGroup(2));
        assert_eq!(
            farm.changes(&next),
            Changes { new_nodes: vec!["/dev/vfio/2".into()], old_nodes: vec!["/dev/vfio/1".into()] }
        );
        farm.update(next).unwrap();
        assert!(!scratch.path().join("sys/b").exists(), "its last entry is gone");
        assert_eq!(std::io::read_to_string(open).unwrap(), "12\n");
        let content = |text: &str| Entry::File { content: text.into(), mode: 0o444, writable: false };
        farm.rewrite("/sys/a/numvfs", content("3\n")).unwrap();
        farm.rewrite("/sys/a/other", content("3\n")).unwrap();
        assert_eq!(std::fs::read_to_string(scratch.path().join("sys/a/numvfs")).unwrap(), "3\n");
        assert_eq!(farm.tree().get("/sys/a/numvfs"), Some(&content("3\n")));
        assert!(!scratch.path().join("sys/a/other").exists(), "only what is there");
        assert!(!scratch.path().join("sys/a/gone").exists());
        assert!(!scratch.path().join("dev/vfio/1").exists());
        assert!(scratch.path().join("dev/vfio/2").exists());
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(scratch.path().join("sys/a/new")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o200);
    }
}
