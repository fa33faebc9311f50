//! `ibm,configure-connector`, walked as a guest walks it.

use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use crate::{ConnectorNodes, NodeBuilder};

/// A node as a guest builds it from what it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    name: String,
    properties: Vec<(String, Vec<u8>)>,
    children: Vec<Node>,
}

impl Node {
    fn fill(&self, into: &mut NodeBuilder<'_>) {
        for (name, value) in &self.properties {
            into.property(name, value);
        }
        for child in &self.children {
            into.child(&child.name, |node| child.fill(node));
        }
    }

    fn at(&mut self, path: &[usize]) -> &mut Self {
        path.iter().fold(self, |node, at| &mut node.children[*at])
    }

    fn nodes(&self) -> ConnectorNodes {
        ConnectorNodes::new(&self.name, |node| self.fill(node))
    }
}

fn cell(area: &[u8], at: usize) -> usize {
    let bytes: [u8; 4] = area[at * 4..at * 4 + 4].try_into().unwrap();
    usize::try_from(u32::from_be_bytes(bytes)).unwrap()
}

fn name(area: &[u8]) -> String {
    let text = &area[cell(area, 2)..];
    let end = text.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(text[..end].to_vec()).unwrap()
}

/// What a guest does that keeps the area between calls.
fn walk(nodes: &ConnectorNodes) -> Node {
    let mut area = std::vec![0; crate::WORK_AREA];
    let mut top: Option<Node> = None;
    // Which child of which: the last node.
    let mut path: Vec<usize> = Vec::new();
    for _ in 0..10_000 {
        let place = u32::try_from(cell(&area, 1)).unwrap();
        let (status, answer) = nodes.answer(place);
        area[4..4 + answer.len()].copy_from_slice(&answer);
        let new = || Node {
            name: name(&area),
            ..Node::default()
        };
        match status {
            0 => return top.unwrap(),
            1 => {
                path.pop().unwrap();
                let parent = top.as_mut().unwrap().at(&path);
                parent.children.push(new());
                path.push(parent.children.len() - 1);
            }
            2 => match &mut top {
                None => top = Some(new()),
                Some(top) => {
                    let parent = top.at(&path);
                    assert!(parent.children.is_empty(), "a first child, twice");
                    parent.children.push(new());
                    path.push(0);
                }
            },
            3 => {
                let (bytes, at) = (cell(&area, 3), cell(&area, 4));
                let value = area[at..at + bytes].to_vec();
                let node = top.as_mut().unwrap().at(&path);
                node.properties.push((name(&area), value));
            }
            4 => {
                path.pop().unwrap();
            }
            other => panic!("status {other}"),
        }
    }
    panic!("it does not end")
}

fn text() -> impl Strategy<Value = String> {
    "[a-z][a-z,#0-9-]{0,20}(@[0-9a-f]{1,4})?"
}

fn tree() -> impl Strategy<Value = Node> {
    let value = || proptest::collection::vec(any::<u8>(), 0..200);
    let properties = move || proptest::collection::vec((text(), value()), 0..5);
    let leaf = (text(), properties()).prop_map(|(name, properties)| Node {
        name,
        properties,
        children: Vec::new(),
    });
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let children = proptest::collection::vec(inner, 0..4);
        (text(), properties(), children).prop_map(|(name, properties, children)| Node {
            name,
            properties,
            children,
        })
    })
}

proptest! {
    #[test]
    fn a_guest_that_walks_has_the_tree(tree in tree()) {
        prop_assert_eq!(walk(&tree.nodes()), tree);
    }

    #[test]
    fn any_place_is_one_of_the_tree_or_refused(tree in tree(), place in any::<u32>()) {
        let nodes = tree.nodes();
        for place in [place, place % 64] {
            let (status, area) = nodes.answer(place);
            prop_assert!([-3, 0, 1, 2, 3, 4].contains(&status));
            prop_assert!(area.len() + 4 <= crate::WORK_AREA);
            prop_assert_eq!(area.is_empty(), status <= 0);
        }
    }
}

#[test]
fn statuses_and_cells_are_paprs() {
    let nodes = ConnectorNodes::new("pci@20", |node| {
        node.property("a", &[1, 2]);
        node.child("x@1", |node| node.child("y", |_| {}));
        node.child("z@2", |_| {});
    });
    let all: Vec<i32> = (0..8).map(|place| nodes.answer(place).0).collect();
    // Its name, its property, a child, one below that, back, a sibling, the end; there is no more.
    assert_eq!(all, [2, 3, 2, 2, 4, 1, 0, -3]);
    let (_, area) = nodes.answer(1);
    assert_eq!(
        area,
        [
            0, 0, 0, 2, 0, 0, 0, 20, 0, 0, 0, 2, 0, 0, 0, 22, b'a', 0, 1, 2
        ]
    );
}

#[test]
fn a_property_that_has_no_room_is_an_error_and_not_cut() {
    let nodes = |bytes| ConnectorNodes::new("n", |node| node.property("p", &std::vec![7; bytes]));
    assert_eq!(nodes(4096 - 22).answer(1).0, 3);
    assert_eq!(nodes(4096 - 21).answer(1), (-1, Vec::new()));
}
