//! An echo of ICMP: the request, and what a reply to it must be. [RFC 792]

/// The longest message.
pub const MOST: usize = 1400;
const HEADER: usize = 8;
const REQUEST: u8 = 8;
const REPLY: u8 = 0;

fn byte(at: usize, number: u16) -> u8 {
    (at as u64 ^ u64::from(number) << 8)
        .wrapping_mul(0x9e37_79b9)
        .to_le_bytes()[2]
}

/// The sum of a message whose own is left out, or 0 if its own is right. [RFC 1071]
fn checksum(message: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in message.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn message(kind: u8, number: u16, bytes: usize) -> [u8; MOST] {
    let mut message = [0; MOST];
    for (at, place) in message.iter_mut().enumerate().take(bytes).skip(HEADER) {
        *place = byte(at, number);
    }
    message[0] = kind;
    message[4..6].copy_from_slice(b"bh");
    message[6..8].copy_from_slice(&number.to_be_bytes());
    let sum = checksum(&message[..bytes]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Bytes of request `number`: others for each, some of them odd.
pub fn bytes(number: u16) -> usize {
    (HEADER + 1 + usize::from(number) * 147).min(MOST)
}

/// Request `number`, of [`bytes`] bytes.
pub fn request(number: u16) -> [u8; MOST] {
    message(REQUEST, number, bytes(number))
}

/// Whether an IPv4 packet is the reply to request `number`, with every byte of it.
pub fn is_reply(packet: &[u8], number: u16) -> bool {
    let Some(&first) = packet.first() else {
        return false;
    };
    let header = usize::from(first & 0xf) * 4;
    let bytes = bytes(number);
    packet.get(header..) == message(REPLY, number, bytes).get(..bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(number: u16) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet.extend(&message(REPLY, number, bytes(number))[..bytes(number)]);
        packet
    }

    #[test]
    fn a_message_has_its_sum() {
        for number in 0..10 {
            let request = request(number);
            assert_eq!(checksum(&request[..bytes(number)]), 0);
            assert_eq!(request[0], 8);
        }
        // [RFC 1071 §3]: the sum of these bytes is 0xddf2.
        let example = [0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&example), !0xddf2);
    }

    #[test]
    fn a_reply_is_whole_and_that_of_its_request() {
        let good = reply(3);
        assert!(is_reply(&good, 3));
        assert!(!is_reply(&good, 4));
        assert!(!is_reply(&good[..good.len() - 1], 3));
        assert!(!is_reply(&[], 3));
        for at in 20..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(!is_reply(&bad, 3), "byte {at}");
        }
    }
}
