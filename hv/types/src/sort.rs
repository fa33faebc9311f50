//! Sorting, small: what is sorted here is short and sorted once, and each further type that the sort of
//! `core` is made for costs four kilobytes of code.

/// Orders `items` by a key. Equal ones come in any order. Heap sort: n log n steps for any input, in place.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    // First the largest of all comes to the front, then one after the other goes to the end.
    let mut roots = items.len() / 2;
    let mut heap = items.len();
    while heap > 1 {
        if roots > 0 {
            roots -= 1;
        } else {
            heap -= 1;
            items.swap(0, heap);
        }
        let mut at = roots;
        loop {
            let left = 2 * at + 1;
            let Some(mut child) = items.get(left).filter(|_| left < heap).map(&key) else {
                break;
            };
            let mut larger = left;
            if let Some(right) = items.get(left + 1).filter(|_| left + 1 < heap).map(&key)
                && right > child
            {
                child = right;
                larger = left + 1;
            }
            if items.get(at).map(&key).is_none_or(|here| here >= child) {
                break;
            }
            items.swap(at, larger);
            at = larger;
        }
    }
}

/// Orders `items`. Equal ones come in any order.
pub fn sort<T: Ord + Copy>(items: &mut [T]) {
    sort_by_key(items, |item| *item);
}

#[cfg(test)]
mod tests {
    use super::{sort, sort_by_key};

    #[test]
    fn every_order_of_seven_becomes_the_one() {
        // All words of seven letters from four, repeats among them.
        for word in 0..4_u32.pow(7) {
            let mut items: [u32; 7] = core::array::from_fn(|at| word >> (2 * at) & 3);
            let mut wanted = items;
            wanted.sort_unstable();
            sort(&mut items);
            assert_eq!(items, wanted);
        }
    }

    #[test]
    fn long_lists_and_keys_are_sorted() {
        let mut seed = 1_u64;
        for len in [0, 1, 2, 100, 1000] {
            let mut items: [(u64, usize); 1000] = core::array::from_fn(|at| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 40, at)
            });
            let items = &mut items[..len];
            sort_by_key(items, |&(key, _)| core::cmp::Reverse(key));
            assert!(items.is_sorted_by_key(|&(key, _)| core::cmp::Reverse(key)));
            let mut from: [usize; 1000] = core::array::from_fn(|at| at);
            let mut places: [usize; 1000] = core::array::from_fn(|at| at);
            for (place, item) in places.iter_mut().zip(items.iter()) {
                *place = item.1;
            }
            sort(&mut places[..len]);
            sort(&mut from[..len]);
            assert_eq!(places[..len], from[..len], "nothing is lost");
        }
    }
}
