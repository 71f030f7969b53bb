// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a path leads in the fake tree.

use std::collections::VecDeque;

use uapi::Errno;

use crate::{Entry, Tree};

/// Most symbolic links that one path may go through, as in Linux.
const MAX_LINKS: usize = 40;

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// To this path of the fake tree.
    Fake(String),
    /// To the machine, by names of the machine only.
    Machine,
    /// To this path of the machine, through a link of the fake tree.
    Beyond(String),
    /// Nowhere.
    Error(Errno),
}

/// Follows an absolute path. With `follow` a link at its end is followed too.
pub(crate) fn resolve(tree: &Tree, path: &str, follow: bool) -> Target {
    let mut todo: VecDeque<String> = parts(path).collect();
    let directory = path.ends_with('/') || path.ends_with("/.");
    let mut at = String::new();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            at.truncate(at.rfind('/').unwrap_or(0));
            continue;
        }
        let next = format!("{at}/{part}");
        match tree.entries.get(&next) {
            Some(Entry::Link(target)) if follow || directory || !todo.is_empty() => {
                links += 1;
                if links > MAX_LINKS {
                    return Target::Error(Errno::from_raw(libc::ELOOP));
                }
                if target.starts_with('/') {
                    at.clear();
                }
                for part in parts(target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(part);
                }
                continue;
            }
            Some(Entry::File { .. } | Entry::Device(_)) if directory || !todo.is_empty() => {
                return Target::Error(Errno::ENOTDIR);
            }
            Some(_) => {}
            None if is_implied_dir(tree, &next) => {}
            None if is_owned(tree, &at) => return Target::Error(Errno::ENOENT),
            None => {
                // The machine resolves the rest. Nothing of ours lies below.
                if links == 0 {
                    return Target::Machine;
                }
                let rest = todo.into_iter().fold(next, |path, part| path + "/" + &part);
                return Target::Beyond(if directory { rest + "/" } else { rest });
            }
        }
        at = next;
    }
    if at.is_empty() { Target::Machine } else { Target::Fake(at) }
}

fn parts(path: &str) -> impl Iterator<Item = String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned)
}

/// Whether something lies below a path that is not listed itself.
fn is_implied_dir(tree: &Tree, path: &str) -> bool {
    let below = format!("{path}/");
    tree.entries.range(below.clone()..).next().is_some_and(|(entry, _)| entry.starts_with(&below))
}

/// Whether the machine's entries in a directory are hidden.
pub(crate) fn is_owned(tree: &Tree, dir: &str) -> bool {
    let ends = dir.match_indices('/').map(|(end, _)| end).chain([dir.len()]);
    ends.filter_map(|end| dir.get(..end))
        .any(|dir| matches!(tree.entries.get(dir), Some(Entry::Directory { own: true })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.own("/sys/bus/pci");
        tree.symlink("/sys/bus/pci/devices/a", "../../../devices/pci0000:00/a");
        tree.file("/sys/devices/pci0000:00/a/vendor", 0o444, "1");
        tree.symlink("/sys/devices/pci0000:00/a/iommu_group", "../../../kernel/iommu_groups/7");
        tree.own("/sys/kernel/iommu_groups");
        tree.own("/sys/kernel/iommu_groups/7");
        tree.symlink("/sys/x", "y");
        tree.symlink("/sys/y", "/sys/x");
        tree.symlink("/sys/out", "devices/system");
        tree.node(Node::VfioGroup(7));
        tree
    }

    fn to(path: &str, follow: bool) -> Target {
        resolve(&tree(), path, follow)
    }

    #[test]
    fn follows_links_and_dots() {
        let fake = |path: &str| Target::Fake(path.into());
        assert_eq!(to("/sys/bus/pci/devices/a/vendor", true), fake("/sys/devices/pci0000:00/a/vendor"));
        assert_eq!(to("/sys/bus/pci/devices/a", false), fake("/sys/bus/pci/devices/a"));
        assert_eq!(to("/sys/bus/pci/devices/a/", false), fake("/sys/devices/pci0000:00/a"));
        assert_eq!(to("/sys/bus/pci/devices/a/iommu_group", true), fake("/sys/kernel/iommu_groups/7"));
        assert_eq!(to("/sys/./bus//pci/../../../dev/vfio/7", true), fake("/dev/vfio/7"));
        assert_eq!(to("/../dev/vfio/", true), fake("/dev/vfio"));
    }

    #[test]
    fn leaves_the_rest_to_the_machine() {
        for path in ["/etc/passwd", "/sys/bus/usb/devices/", "/sys/devices/system/cpu", "/"] {
            assert_eq!(to(path, true), Target::Machine, "{path}");
        }
        assert_eq!(to("/sys/out/cpu0/", true), Target::Beyond("/sys/devices/system/cpu0/".into()));
        assert_eq!(to("/sys/out", false), Target::Fake("/sys/out".into()));
    }

    #[test]
    fn tells_what_is_missing() {
        assert_eq!(to("/sys/bus/pci/slots", true), Target::Error(Errno::ENOENT));
        assert_eq!(to("/sys/kernel/iommu_groups/7/x/y", true), Target::Error(Errno::ENOENT));
        assert_eq!(to("/dev/vfio/7/x", true), Target::Error(Errno::ENOTDIR));
        assert_eq!(to("/dev/vfio/7/", true), Target::Error(Errno::ENOTDIR));
        assert_eq!(to("/sys/x", true), Target::Error(Errno::from_raw(libc::ELOOP)));
        assert_eq!(to("/sys/x", false), Target::Fake("/sys/x".into()));
    }
}
