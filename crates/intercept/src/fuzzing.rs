// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What decodes bytes of programs here, for the fuzz target `intercept`: the
//! arguments of calls, lists of buffers, paths, and texts of `/proc` in which
//! names are that programs have chosen.

use uapi::Errno;

use crate::listener::Notification;
use crate::resolve::{Target, resolve};
use crate::trace::{Request, Shown, call_name};
use crate::{Figures, Node, Tree, calls, figures, identity, mapped, opens, paths, preload, supervisor};

/// Longest path that the kernel takes.
const PATH_MAX: usize = 4096;

/// Decodes `data` as what its first byte says.
///
/// # Panics
/// If a law is broken.
pub fn decode(data: &[u8]) {
    let Some((what, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match what % 6 {
        0 => call(rest),
        1 => buffers(rest),
        2 => path(&text),
        3 => process_texts(&text),
        4 => status(&text),
        _ => drop(preload::elf_is_static(std::io::Cursor::new(rest))),
    }
}

fn word(data: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    let have = data.get(8 * at..).unwrap_or_default();
    let len = have.len().min(8);
    word[..len].copy_from_slice(&have[..len]);
    u64::from_le_bytes(word)
}

/// Any number of any call with any arguments, as it is shown and sorted.
fn call(data: &[u8]) {
    let nr = word(data, 0) as i32;
    let n = Notification { id: 1, tid: 1, nr, args: std::array::from_fn(|arg| word(data, arg + 1)) };
    assert!(!call_name(n.nr).is_empty());
    let _ = (supervisor::transfer_of(n.nr), paths::is_path_call(&n));
    let request = n.args[1] as u32;
    assert!(!Request(request).to_string().is_empty());
    let _ = Shown(Ok(n.args[2])).to_string() + &Shown(Err(Errno::from_raw(n.args[0] as i32))).to_string();
    for kind in calls::KINDS {
        let _ = calls::belongs(kind, request);
    }
}

/// Buffers are those of the list, in order, and no more than can be counted.
fn buffers(data: &[u8]) {
    let (pairs, _) = data.as_chunks::<16>();
    match calls::buffers(pairs.as_flattened()) {
        Ok(buffers) => {
            assert_eq!(buffers.len(), pairs.len());
            let total = buffers.iter().try_fold(0u64, |total, (_, len)| total.checked_add(*len));
            assert!(total.is_some_and(|total| total <= i64::MAX as u64));
        }
        Err(errno) => assert_eq!(errno, Errno::EINVAL),
    }
}

fn tree() -> Tree {
    let mut tree = Tree::default();
    tree.own("/sys/bus/pci");
    tree.symlink("/sys/bus/pci/devices/a", "../../../devices/pci0000:00/a");
    tree.file("/sys/devices/pci0000:00/a/vendor", 0o444, "1");
    tree.symlink("/sys/x", "y");
    tree.symlink("/sys/y", "/sys/x");
    tree.symlink("/sys/out", "devices/system");
    tree.symlink("/sys/up", "../..");
    tree.node(Node::VfioGroup(7));
    tree
}

/// What a path leads to is a plain path, and leads to itself.
fn path(text: &str) {
    let tree = tree();
    let text: String = text.chars().take(PATH_MAX).collect();
    let plain =
        |path: &str| path.starts_with('/') && !path.split('/').skip(1).any(|part| matches!(part, "" | "." | ".."));
    for follow in [false, true] {
        match resolve(&tree, &text, follow) {
            Target::Fake(path) => {
                assert!(plain(&path), "{text:?} leads to {path:?}");
                assert_eq!(resolve(&tree, &path, false), Target::Fake(path));
            }
            Target::Beyond(path) => assert!(path.starts_with('/'), "{text:?} leads to {path:?}"),
            Target::Machine | Target::Error(_) => {}
        }
    }
    let _ = (opens::may_be_fake(&text), figures::process_named(&text));
}

/// `fdinfo` and lines of `maps`.
fn process_texts(text: &str) {
    let _ = (identity::has_lock(text, caller::FileId(7)), identity::eventfd_id(text));
    for line in text.lines() {
        let _ = mapped::touches(line, (1, 42), 0, u64::MAX);
        assert!(!mapped::touches(line, (u64::MAX, 0), 0, 0), "no page of nothing is mapped: {line:?}");
    }
}

/// Lines of `status` that have no figure stay as they are; no line comes or
/// goes.
fn status(text: &str) {
    assert_eq!(figures::with_figures(text, Figures::default()), text);
    let shown = figures::with_figures(text, Figures { locked: u64::MAX, pinned: 1 });
    let changed = |line: &str| line.starts_with("VmLck:") || line.starts_with("VmPin:");
    let kept = |text: &str| text.lines().filter(|line| !changed(line)).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!((shown.lines().count(), kept(&shown)), (text.lines().count(), kept(text)));
}
