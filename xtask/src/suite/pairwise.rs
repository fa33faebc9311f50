//! Samples of a matrix in which every pair of values of any two factors occurs.

use std::collections::BTreeSet;

/// Of these rows of value indices, one index for each factor, so many that every pair of values that
/// occurs in one of them occurs again. With every pair covered, a fault that needs two values at once
/// is met; the rest is left to `--full`. Pairs that occur in one of the `others` are met there.
pub(crate) fn pairs_beside<const N: usize>(
    others: &[[usize; N]],
    candidates: &[Vec<usize>],
) -> Vec<Vec<usize>> {
    if candidates.iter().any(|row| row.len() < 2) {
        return candidates.to_vec();
    }
    let mut open: BTreeSet<[(usize, usize); 2]> = BTreeSet::new();
    for row in candidates {
        let values: Vec<_> = row.iter().copied().enumerate().collect();
        for (at, &first) in values.iter().enumerate() {
            open.extend(values.iter().skip(at + 1).map(|&second| [first, second]));
        }
    }
    for row in others {
        open.retain(|pair| pair.iter().any(|&(factor, value)| row[factor] != value));
    }
    let mut rows = Vec::new();
    while !open.is_empty() {
        let covered = |row: &[usize]| {
            open.iter()
                .filter(|pair| pair.iter().all(|&(factor, value)| row[factor] == value))
                .count()
        };
        // The first of the best, so that the sample is the same every time.
        let mut best = None;
        for row in candidates {
            let count = covered(row);
            if best.is_none_or(|(most, _)| count > most) {
                best = Some((count, row));
            }
        }
        let Some((_, row)) = best else { break };
        open.retain(|pair| pair.iter().any(|&(factor, value)| row[factor] != value));
        rows.push(row.clone());
    }
    rows
}

/// Every combination.
pub(crate) fn full(sizes: &[usize]) -> Vec<Vec<usize>> {
    sizes.iter().fold(vec![Vec::new()], |rows, &size| {
        rows.iter()
            .flat_map(|row| {
                (0..size).map(move |value| row.iter().copied().chain([value]).collect::<Vec<_>>())
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(candidates: &[Vec<usize>]) -> Vec<Vec<usize>> {
        pairs_beside::<0>(&[], candidates)
    }

    #[test]
    fn what_others_have_is_not_sampled_again() {
        let rows = full(&[2, 2, 2]);
        let others = [[0, 0, 0], [1, 1, 1]];
        let sample = pairs_beside(&others, &rows);
        assert!(sample.len() < pairs(&rows).len(), "{sample:?}");
        let mut all = sample.clone();
        all.extend(others.map(Vec::from));
        for first in 0..3 {
            for second in first + 1..3 {
                for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    assert!(all.iter().any(|row| row[first] == a && row[second] == b));
                }
            }
        }
    }

    #[test]
    fn every_pair_occurs_and_the_sample_is_small() {
        let sizes = [5, 3, 3];
        let rows = pairs(&full(&sizes));
        for first in 0..sizes.len() {
            for second in first + 1..sizes.len() {
                for a in 0..sizes[first] {
                    for b in 0..sizes[second] {
                        assert!(rows.iter().any(|row| row[first] == a && row[second] == b));
                    }
                }
            }
        }
        assert!(rows.len() < 20, "{} rows", rows.len());
        assert_eq!(rows, pairs(&full(&sizes)));
    }

    #[test]
    fn a_row_that_cannot_be_costs_no_pair_that_another_has() {
        // The first value of the first three factors at once is impossible.
        let mut rows = full(&[2, 2, 2, 3]);
        rows.retain(|row| row[..3] != [0, 0, 0]);
        let sample = pairs(&rows);
        assert!(sample.iter().all(|row| rows.contains(row)));
        for row in &rows {
            for first in 0..row.len() {
                for second in first + 1..row.len() {
                    let has = |other: &Vec<usize>| {
                        other[first] == row[first] && other[second] == row[second]
                    };
                    assert!(sample.iter().any(has));
                }
            }
        }
        assert!(sample.len() < 10, "{} rows", sample.len());
    }

    #[test]
    fn the_full_product_has_every_row_once() {
        let mut rows = full(&[5, 3, 3]);
        rows.sort();
        rows.dedup();
        assert_eq!(rows.len(), 45);
    }

    #[test]
    fn one_factor_and_none_are_taken_whole() {
        assert_eq!(pairs(&full(&[3])), [[0], [1], [2]]);
        assert_eq!(pairs(&full(&[2, 2])).len(), 4);
        assert!(pairs(&full(&[0, 2])).is_empty());
    }
}
