//! Request targets and URLs: `/cart?token=secret`, `http://user:password@host/`.

use super::{BLANK, Key};

/// Replaces the values of a query, which begins after the `?`. Names stay; a part without a name is all value.
pub(super) fn query(bytes: &mut [u8], key: &Key) {
    for part in bytes.split_mut(|byte| matches!(byte, b'&' | b';')) {
        let value = part.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
        if let Some(value) = part.get_mut(value..) {
            key.replace(value);
        }
    }
}

/// Replaces the values of the query of a target, and what stands before an `@` of an absolute one.
pub(super) fn target(bytes: &mut [u8], key: &Key) {
    let end = bytes.iter().position(|byte| *byte == b'?').unwrap_or(bytes.len());
    let (path, rest) = bytes.split_at_mut(end);
    userinfo(path);
    if let Some(rest) = rest.get_mut(1..) {
        query(rest, key);
    }
}

/// A request line, whole or cut: `GET /cart?a=b HTTP/1.1`. A space inside the target does not end it.
pub(super) fn request_line(line: &mut [u8], key: &Key) {
    let Some(begin) = line.iter().position(|byte| *byte == b' ').map(|at| at + 1) else { return target(line, key) };
    let end = (begin..line.len()).rev().find(|at| line[*at..].starts_with(b" HTTP/")).unwrap_or(line.len());
    if let Some(bytes) = line.get_mut(begin..end) {
        target(bytes, key);
    }
}

/// Blanks `user:password` of `scheme://user:password@host/`.
fn userinfo(path: &mut [u8]) {
    let Some(begin) = path.windows(3).position(|three| three == b"://").map(|at| at + 3) else { return };
    let end = (begin..path.len()).find(|at| path[*at] == b'/').unwrap_or(path.len());
    if let Some(at) = path[begin..end].iter().rposition(|byte| *byte == b'@') {
        path[begin..begin + at].fill(BLANK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        request_line(&mut bytes, &Key::new(*b"0123456789abcdef"));
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn values_go_and_the_rest_stays() {
        let out = line("GET /cart?token=s3cret&id=7;x HTTP/1.1");
        assert!(out.starts_with("GET /cart?token=") && out.contains("&id=") && out.ends_with(" HTTP/1.1"), "{out}");
        assert!(!out.contains("s3cret") && out.len() == "GET /cart?token=s3cret&id=7;x HTTP/1.1".len());
        assert!(!line("GET /a?b=c secret HTTP/1.1").contains("secret"), "a space is part of the value");
        assert!(!line("GET /a?secret").contains("secret"), "a cut line, a query without names");
        assert!(!line("/a?b=secret").contains("secret"), "no method");
        assert_eq!(line("GET http://joe:pw@shop/x HTTP/1.1"), "GET http://xxxxxx@shop/x HTTP/1.1");
        assert_eq!(line("GET /plain HTTP/1.1"), "GET /plain HTTP/1.1");
    }
}
