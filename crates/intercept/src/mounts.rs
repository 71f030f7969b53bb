// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the fake tree gets into the program's mount namespace.
//!
//! The fake tree lives in a tmpfs. Where the machine has a directory or file
//! of the same name, that part of the tmpfs is mounted over it. Where it has
//! not, the directory above is *composed*: the tmpfs directory is mounted
//! over it, and the machine's entries are mounted back one by one. (An
//! overlay would do with one mount, but may not change while it is mounted,
//! makes attributes read-only, and hides device nodes in a user namespace.)
//!
//! Everything is worked out beforehand, so that the new process only has to
//! run a list of system calls.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::{Entry, Tree};

/// One mount, done in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mount {
    /// Opens a directory of the machine before anything hides it; its number
    /// is how many were opened before.
    Open {
        /// Absolute path.
        path: CString,
    },
    /// Mounts a part of the tmpfs.
    Fake {
        /// Path below the tmpfs's root.
        source: CString,
        /// Absolute path.
        target: CString,
    },
    /// Mounts an entry of the machine's directory, with all below it.
    Real {
        /// Number of the opened directory.
        dir: usize,
        /// Name in it.
        name: CString,
        /// Absolute path.
        target: CString,
    },
}

/// What else a composed directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sibling {
    /// A directory to mount the machine's over.
    Dir,
    /// A file to mount the machine's over.
    File,
    /// A link with the same target as the machine's.
    Symlink(String),
}

/// The list of mounts, and what the tmpfs needs for them.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// In order.
    pub(crate) mounts: Vec<Mount>,
    /// Entries of the tmpfs that are not in the fake tree, by path.
    pub(crate) siblings: BTreeMap<String, Sibling>,
    /// Directories of the machine that had no name to mount over.
    pub(crate) composed: Vec<String>,
}

/// The fake tree as nested directories.
#[derive(Debug, Default)]
struct Dir<'a> {
    own: bool,
    names: BTreeMap<&'a str, Name<'a>>,
}

#[derive(Debug)]
enum Name<'a> {
    Dir(Dir<'a>),
    Other(&'a Entry),
}

fn nest(tree: &Tree) -> Dir<'_> {
    let mut root = Dir::default();
    for (path, entry) in &tree.entries {
        let mut dir = &mut root;
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            match (last, entry) {
                (true, Entry::Directory { own }) => {
                    if let Name::Dir(dir) = dir.names.entry(part).or_insert_with(|| Name::Dir(Dir::default())) {
                        dir.own |= own;
                    }
                    break;
                }
                (true, other) => {
                    dir.names.insert(part, Name::Other(other));
                    break;
                }
                (false, _) => match dir.names.entry(part).or_insert_with(|| Name::Dir(Dir::default())) {
                    Name::Dir(next) => dir = next,
                    // A file above a file: the tree is wrong; what lies below is not reachable.
                    Name::Other(_) => break,
                },
            }
        }
    }
    root
}

/// Works out the mounts for `tree` on the machine whose root is `root` ("/",
/// or a test's).
pub(crate) fn plan(tree: &Tree, root: &Path) -> Plan {
    let mut planner = Planner { root, plan: Plan::default(), opened: 0 };
    // The stand-in for nodes, before /dev may be hidden.
    planner.plan.mounts.push(Mount::Open { path: c"/dev".into() });
    planner.opened = 1;
    planner.dir("", &nest(tree), false);
    // What is opened must be opened before anything is mounted over it.
    let (mut opens, rest): (Vec<_>, Vec<_>) =
        planner.plan.mounts.into_iter().partition(|mount| matches!(mount, Mount::Open { .. }));
    opens.extend(rest);
    planner.plan.mounts = opens;
    planner.plan
}

/// Number of the opened `/dev`, whose `null` stands in for nodes.
pub(crate) const REAL_DEV: usize = 0;

struct Planner<'p> {
    root: &'p Path,
    plan: Plan,
    opened: usize,
}

impl Planner<'_> {
    fn real(&self, path: &str) -> Option<std::fs::Metadata> {
        std::fs::symlink_metadata(self.root.join(path.trim_start_matches('/'))).ok()
    }

    /// `visible`: the tmpfs's directory of this path is already there to see.
    fn dir(&mut self, path: &str, dir: &Dir<'_>, visible: bool) {
        let exists = path.is_empty() || self.real(path).is_some_and(|real| real.is_dir());
        if dir.own || !exists {
            if !visible {
                self.fake(path);
            }
            self.nodes(path, dir);
            return;
        }
        let compose =
            !path.is_empty() && dir.names.iter().any(|(name, what)| !self.fits(&format!("{path}/{name}"), what));
        if compose {
            self.plan.composed.push(path.to_owned());
            if !visible {
                self.fake(path);
            }
            self.siblings(path, dir);
        } else if visible {
            self.real_dir(path);
        }
        for (name, what) in &dir.names {
            let path = format!("{path}/{name}");
            match what {
                Name::Dir(dir) => self.dir(&path, dir, compose),
                Name::Other(Entry::Device(_)) => self.node(&path),
                Name::Other(Entry::File { .. }) if !compose => self.fake(&path),
                Name::Other(_) => {}
            }
        }
    }

    /// Whether the machine has something to mount it over.
    fn fits(&self, path: &str, what: &Name<'_>) -> bool {
        let Some(real) = self.real(path) else { return false };
        match what {
            Name::Dir(_) => real.is_dir(),
            Name::Other(Entry::Link(_)) => false,
            Name::Other(_) => !real.is_dir() && !real.is_symlink(),
        }
    }

    fn siblings(&mut self, path: &str, dir: &Dir<'_>) {
        let Ok(entries) = std::fs::read_dir(self.root.join(path.trim_start_matches('/'))) else { return };
        let Some(real) = c_string(path) else { return };
        self.plan.mounts.push(Mount::Open { path: real });
        let number = self.opened;
        self.opened += 1;
        for entry in entries.flatten() {
            // A name that is not UTF-8 is none of the kernel's.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if dir.names.contains_key(name.as_str()) {
                continue;
            }
            let target = format!("{path}/{name}");
            let Ok(kind) = entry.file_type() else { continue };
            let sibling = if kind.is_symlink() {
                match std::fs::read_link(entry.path()).map(|link| link.into_os_string().into_string()) {
                    Ok(Ok(link)) => Sibling::Symlink(link),
                    _ => continue,
                }
            } else if kind.is_dir() {
                Sibling::Dir
            } else {
                Sibling::File
            };
            if !matches!(sibling, Sibling::Symlink(_)) {
                let (Some(name), Some(target)) = (c_string(&name), c_string(&target)) else { continue };
                self.plan.mounts.push(Mount::Real { dir: number, name, target });
            }
            self.plan.siblings.insert(target, sibling);
        }
    }

    fn real_dir(&mut self, path: &str) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() { "/" } else { parent };
        let (Some(parent), Some(name), Some(target)) = (c_string(parent), c_string(name), c_string(path)) else {
            return;
        };
        self.plan.mounts.push(Mount::Open { path: parent });
        self.plan.mounts.push(Mount::Real { dir: self.opened, name, target });
        self.opened += 1;
        self.plan.siblings.insert(path.to_owned(), Sibling::Dir);
    }

    fn fake(&mut self, path: &str) {
        if let (Some(source), Some(target)) = (c_string(path.trim_start_matches('/')), c_string(path)) {
            self.plan.mounts.push(Mount::Fake { source, target });
        }
    }

    fn node(&mut self, path: &str) {
        if let Some(target) = c_string(path) {
            self.plan.mounts.push(Mount::Real { dir: REAL_DEV, name: c"null".into(), target });
        }
    }

    fn nodes(&mut self, path: &str, dir: &Dir<'_>) {
        for (name, what) in &dir.names {
            let path = format!("{path}/{name}");
            match what {
                Name::Dir(dir) => self.nodes(&path, dir),
                Name::Other(Entry::Device(_)) => self.node(&path),
                Name::Other(_) => {}
            }
        }
    }
}

fn c_string(path: &str) -> Option<CString> {
    CString::new(Path::new(path).as_os_str().as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;

    fn machine(paths: &[&str]) -> crate::scratch::Scratch {
        let root = crate::scratch::Scratch::new("mounts").unwrap();
        for path in paths {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
        }
        root
    }

    fn text(plan: &Plan) -> Vec<String> {
        let s = |c: &CString| c.to_str().unwrap().to_owned();
        plan.mounts
            .iter()
            .map(|mount| match mount {
                Mount::Open { path } => format!("open {}", s(path)),
                Mount::Fake { source, target } => format!("fake {} {}", s(source), s(target)),
                Mount::Real { dir, name, target } => format!("real {dir} {} {}", s(name), s(target)),
            })
            .collect()
    }

    #[test]
    fn mounts_over_what_is_there() {
        let root = machine(&["dev", "sys/bus/pci/devices", "sys/bus/usb", "sys/kernel/iommu_groups"]);
        let mut tree = Tree::default();
        tree.own("/sys/bus/pci");
        tree.file("/sys/bus/pci/devices/x", 0o444, "1");
        tree.own("/sys/kernel/iommu_groups");
        let plan = plan(&tree, root.path());
        assert_eq!(
            text(&plan),
            ["open /dev", "fake sys/bus/pci /sys/bus/pci", "fake sys/kernel/iommu_groups /sys/kernel/iommu_groups"]
        );
        assert!(plan.siblings.is_empty());
    }

    #[test]
    fn composes_where_a_name_is_new() {
        let root = machine(&["dev/pts", "sys/module/kvm", "sys/bus/usb"]);
        std::fs::write(root.path().join("dev/tty"), "").unwrap();
        std::os::unix::fs::symlink("/proc/self/fd", root.path().join("dev/fd")).unwrap();
        let mut tree = Tree::default();
        tree.own("/dev/vfio");
        tree.node(Node::VfioGroup(7));
        let plan = plan(&tree, root.path());
        let mut mounts = text(&plan);
        mounts[3..5].sort();
        assert_eq!(
            mounts,
            [
                "open /dev",
                "open /dev",
                "fake dev /dev",
                "real 1 pts /dev/pts",
                "real 1 tty /dev/tty",
                "real 0 null /dev/vfio/7"
            ]
        );
        assert_eq!(plan.siblings["/dev/fd"], Sibling::Symlink("/proc/self/fd".into()));
        assert_eq!(plan.siblings["/dev/tty"], Sibling::File);
    }

    #[test]
    fn a_merged_directory_below_a_composed_one_keeps_its_entries() {
        let root = machine(&["dev", "sys/class/net", "sys/devices/system", "sys/devices/pci0000:00/0000:00:05.0"]);
        let mut tree = Tree::default();
        tree.own("/sys/class/vfio-dev");
        tree.own("/sys/devices/pci0000:00/0000:00:01.0");
        tree.own("/sys/devices/virtual");
        let plan = plan(&tree, root.path());
        let mounts = text(&plan);
        assert!(mounts.contains(&"fake sys/devices /sys/devices".into()), "{mounts:?}");
        assert!(mounts.contains(&"real 3 0000:00:05.0 /sys/devices/pci0000:00/0000:00:05.0".into()), "{mounts:?}");
        assert!(!mounts.contains(&"fake sys/devices/pci0000:00 /sys/devices/pci0000:00".into()));
        assert!(mounts.iter().all(|mount| !mount.contains("sys/bus")));
    }
}
