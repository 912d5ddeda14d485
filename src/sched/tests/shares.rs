//! What backlogged classes get, in bytes.

use crate::abi::Class;
use crate::sched::{Mode, Policy, Shape};

use super::stock::{Stock, Want};

const DEEP: usize = 66;
const PASSES: [u32; 7] = [1, 2, 4, 7, 8, 16, 64];

/// Bytes of each class that passes of so many ops serve; every class has ops at all times.
fn served(mode: Mode, sizes: [u32; 3], pass_ops: u32, passes: u32, classes: &[Class]) -> [u64; 3] {
    let shape = Shape { sessions: 3, peers: 1, window_bytes: 1 << 30 };
    let records = u32::try_from(3 * DEEP).unwrap();
    let mut stock = Stock::new(&Policy { mode, ..Policy::DEFAULT }, shape, records);
    let want = |class: Class| {
        let session = u32::try_from(class.index()).unwrap();
        Want { session, ..Want::of(class, sizes[class.index()]) }
    };
    for &class in classes {
        (0..DEEP).for_each(|_| stock.add(want(class), 0));
    }
    let mut bytes = [0; 3];
    for _ in 0..passes {
        let mut taken = Vec::new();
        stock.scheduler.begin(pass_ops, 1 << 30);
        while taken.len() < pass_ops as usize {
            taken.push(stock.next().unwrap());
        }
        for class in taken {
            bytes[class.index()] += u64::from(sizes[class.index()]);
            stock.add(want(class), 0);
        }
    }
    bytes
}

/// Parts of the whole, in thousandths.
fn parts(bytes: [u64; 3]) -> [u64; 3] {
    bytes.map(|part| part * 1_000 / bytes.iter().sum::<u64>())
}

/// 4:2:1 within 2 % of each part.
fn assert_weighted(bytes: [u64; 3], what: impl std::fmt::Debug) {
    for (part, weight) in parts(bytes).into_iter().zip([4, 2, 1]) {
        let must = weight * 1_000 / 7;
        assert!(part.abs_diff(must) * 50 <= must, "{what:?}: {:?}", parts(bytes));
    }
}

#[test]
fn weighted_classes_share_bytes_four_to_two_to_one() {
    for size in [64, 4 << 10, 1 << 20] {
        for pass_ops in PASSES {
            let bytes = served(Mode::Weighted, [size; 3], pass_ops, 7_000 / pass_ops, &Class::ALL);
            assert_weighted(bytes, (size, pass_ops));
        }
    }
}

#[test]
fn weighted_classes_share_bytes_whatever_the_sizes_of_their_ops() {
    for sizes in [[4 << 10, 64 << 10, 1 << 20], [1 << 20, 4 << 10, 512], [4 << 10, 1 << 20, 600]] {
        for pass_ops in PASSES {
            let passes = 100_000 / pass_ops;
            let bytes = served(Mode::Weighted, sizes, pass_ops, passes, &Class::ALL);
            assert_weighted(bytes, (sizes, pass_ops));
        }
    }
}

/// Its quantum follows the window, which small ops never use up, and its rotation begins after the
/// class served last: so high, of weight 4, gets what low gets.
#[test]
fn tent_gives_small_ops_of_class_high_half() {
    let classes = [Class::High, Class::Low];
    for pass_ops in PASSES {
        let bytes = served(Mode::Tent, [4 << 10; 3], pass_ops, 6_400 / pass_ops, &classes);
        assert!((490..=520).contains(&parts(bytes)[0]), "{pass_ops}: {:?}", parts(bytes));
        let bytes = served(Mode::Weighted, [4 << 10; 3], pass_ops, 6_400 / pass_ops, &classes);
        assert!((784..=816).contains(&parts(bytes)[0]), "{pass_ops}: {:?}", parts(bytes));
    }
}

/// While high has work all the time, each of the others gets its minimum, and no more.
#[test]
fn strict_classes_get_their_minimum() {
    for size in [4 << 10, 1 << 20] {
        let bytes = served(Mode::Strict, [size; 3], 16, 20_000, &Class::ALL);
        // The window is 2^30 bytes: before that is served, nobody is owed anything.
        let shares = parts(bytes);
        assert!(shares[0] >= 978, "{shares:?}");
        if size == 1 << 20 {
            assert!((9..=11).contains(&shares[1]) && (9..=11).contains(&shares[2]), "{shares:?}");
        }
    }
}
