// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Moves at random, in batches and not, against the same done here.

use models::dsa::spec::Descriptor;
use models::testing::Access;
use proptest::prelude::*;

use crate::fixture::{DATA, moving, noise, ready};

const LEN: usize = 256 << 10;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn moves(
        ops in prop::collection::vec((0..LEN, 0..LEN, 1..LEN, any::<bool>()), 1..24),
        trapped in any::<bool>(),
    ) {
        let mut f = ready(if trapped { Access::Trapped } else { Access::Mapped });
        let mut bytes = noise(12, LEN);
        f.memory.set(DATA, &bytes);
        let mut batch: Vec<Descriptor> = Vec::new();
        for (from, to, len, batched) in ops {
            let len = len.min(LEN - from).min(LEN - to);
            bytes.copy_within(from..from + len, to);
            batch.push(moving(DATA + from as u64, DATA + to as u64, len as u32));
            if !batched {
                let status = match batch.as_slice() {
                    [one] => f.execute(*one).status,
                    list => f.execute_batch(list).status,
                };
                prop_assert_eq!(status, 1);
                batch.clear();
            }
        }
        if !batch.is_empty() {
            batch.push(Descriptor::default());
            prop_assert_eq!(f.execute_batch(&batch).status, 1);
        }
        prop_assert!(f.get(DATA, LEN) == bytes);
    }
}
