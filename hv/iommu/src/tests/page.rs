//! The documentation page against the tests: what it names exists, and no self-test is left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path as FilePath;
use std::string::{String, ToString};

use super::*;

/// The fixtures of iommufd's self-tests and their tests, as of Linux 6.12 and what was added since.
const SELF_TESTS: [(&str, &str); 8] = [
    (
        "iommufd",
        "simple_close cmd_fail cmd_length cmd_ex_fail global_options simple_ioctls unmap_cmd map_cmd \
         info_cmd set_iommu_cmd vfio_ioas",
    ),
    (
        "iommufd_ioas",
        "ioas_auto_destroy ioas_destroy alloc_hwpt_nested hwpt_attach ioas_area_destroy \
         ioas_area_auto_destroy get_hw_info area unmap_fully_contained_areas area_auto_iova \
         area_allowed copy_area iova_ranges access_domain_destory access_pin access_pin_unmap \
         access_rw access_rw_unaligned fork_gone fork_present ioas_option_huge_pages \
         ioas_iova_alloc ioas_align_change copy_sweep",
    ),
    (
        "iommufd_mock_domain",
        "basic ro_unshare all_aligns all_aligns_copy user_copy replace alloc_hwpt",
    ),
    (
        "iommufd_dirty_tracking",
        "enforce_dirty set_dirty_tracking device_dirty_capability get_dirty_bitmap …_no_clear",
    ),
    (
        "vfio_compat_mock_domain",
        "simple_close option_huge_pages get_info map huge_map",
    ),
    (
        "iommufd_viommu",
        "viommu_auto_destroy viommu_negative_tests viommu_alloc_nested_iopf viommu_alloc_with_data \
         vdevice_alloc vdevice_cache hw_queue vdevice_tombstone",
    ),
    ("iommufd_device_pasid", "pasid_attach"),
    (
        "iommufd_fail_nth",
        "basic map_domain map_two_domains access_rw access_pin access_pin_domain device",
    ),
];

fn folder(path: &str) -> std::path::PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn page() -> String {
    fs::read_to_string(folder("../../docs/iommu-core.md")).unwrap()
}

/// The tests of each module, by the source.
fn tests() -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder("src/tests")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        let source = if path.is_dir() {
            fs::read_to_string(path.join("mod.rs")).unwrap()
        } else {
            fs::read_to_string(path).unwrap()
        };
        let mut names = Vec::new();
        for (at, _) in source.match_indices("#[test]") {
            let rest = &source[at..];
            let from = rest.find("fn ").unwrap() + 3;
            let to = rest.find('(').unwrap_or(rest.len()).max(from);
            names.push(rest[from..to].to_string());
        }
        // Tests that a macro makes have their names in its calls; the name alone is looked for.
        names.push(source);
        all.insert(name, names);
    }
    all
}

/// What is in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What the page names wrongly: module and beginning of a name.
fn missing(page: &str) -> Vec<String> {
    let tests = tests();
    let exists = |module: &str, name: &str| {
        let name = name.trim_end_matches('…');
        tests.get(module).is_some_and(|tests| {
            let (source, names) = tests.split_last().unwrap();
            names.iter().any(|test| test.starts_with(name)) || source.contains(name)
        })
    };
    let mut wrong = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let Some(ours) = row.trim_end_matches(" |").rsplit(" | ").next() else {
            continue;
        };
        let mut module = "";
        for name in quoted(ours) {
            let lower = name.starts_with(|c: char| c.is_ascii_lowercase());
            match name.split_once("::") {
                Some((of, test)) if lower => {
                    module = of;
                    if !exists(of, test) {
                        wrong.push(name.to_string());
                    }
                }
                None if lower && tests.contains_key(name) => module = name,
                None if lower && !module.is_empty() && !exists(module, name) => {
                    wrong.push(name.to_string());
                }
                _ => {}
            }
        }
    }
    wrong
}

#[test]
fn every_self_test_is_on_the_page() {
    let page = page();
    let table = page.split("\n| fixture |").nth(1).unwrap();
    for (fixture, tests) in SELF_TESTS {
        for test in tests.split_whitespace() {
            assert!(quoted(table).any(|name| name == test), "{fixture}: {test}");
        }
    }
    assert!(!quoted(table).any(|name| name == "no_such_test"));
}

#[test]
fn every_test_on_the_page_exists() {
    let page = page();
    assert_eq!(missing(&page), Vec::<String>::new());
    // The negative control: names that are a letter off are found.
    let broken = page.replace("`fail_nth::pinning`", "`fail_nth::pinnning`");
    assert_ne!(broken, page);
    assert_eq!(missing(&broken), ["fail_nth::pinnning"]);
}

#[test]
fn counts_on_the_page_are_right() {
    let (page, tests) = (page(), tests());
    let mut checked = 0;
    for (at, _) in page.match_indices(" tests") {
        let before = &page[..at];
        let Some((rest, count)) = before.rsplit_once("` (") else {
            continue;
        };
        let Ok(count) = count.parse::<usize>() else {
            continue;
        };
        let module = rest.rsplit('`').next().unwrap();
        // The last of the list is the source.
        let Some(list) = tests.get(module) else {
            continue;
        };
        assert_eq!(list.len() - 1, count, "{module}");
        checked += 1;
    }
    assert!(checked >= 5, "{checked}");
}
