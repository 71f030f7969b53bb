// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a sysfs is read from.

use crate::tree::{Entry, Tree};

/// A tree of files and links.
pub trait Files {
    /// A file's content; `None` if it cannot be read.
    fn read(&self, path: &str) -> Option<Vec<u8>>;

    /// Where a link leads, as it is stored.
    fn link(&self, path: &str) -> Option<String>;

    /// Names in a directory; none if there is no such directory. `path` may
    /// lead through links.
    fn list(&self, path: &str) -> Vec<String>;
}

/// A lab's own tree.
impl Files for Tree {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        match self.get(&resolve(self, path))? {
            Entry::File { content, .. } => Some(content.clone()),
            _ => None,
        }
    }

    fn link(&self, path: &str) -> Option<String> {
        let (directory, name) = path.rsplit_once('/')?;
        match self.get(&format!("{}/{name}", resolve(self, directory)))? {
            Entry::Link(target) => Some(target.clone()),
            _ => None,
        }
    }

    fn list(&self, path: &str) -> Vec<String> {
        let prefix = resolve(self, path) + "/";
        let inside = self.iter().filter_map(|(path, _)| path.strip_prefix(&prefix));
        inside.filter(|name| !name.contains('/')).map(str::to_owned).collect()
    }
}

/// The path without links in it. Links are followed so often that a cycle
/// would end.
fn resolve(tree: &Tree, path: &str) -> String {
    let mut left: Vec<String> = path.split('/').filter(|p| !p.is_empty()).rev().map(str::to_owned).collect();
    let mut at = String::new();
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == ".." {
            at.truncate(at.rfind('/').unwrap_or(0));
            continue;
        }
        let next = format!("{at}/{part}");
        match tree.get(&next) {
            Some(Entry::Link(target)) if links < 40 => {
                links += 1;
                left.extend(target.split('/').rev().map(str::to_owned));
            }
            _ => at = next,
        }
    }
    at
}
