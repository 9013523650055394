//! Details of incidents folded up small: a thousand of them are much alike, and compress to a tenth of what they are.
//!
//! Some stand in the page as they are, so that it can be read without a script; the others are in blocks that a script unfolds.

use flate2::{Compress, Compression, FlushCompress, Status};

use super::markup::Html;

/// Details that stand in the page as they are take no more than so many bytes in all.
const PLAIN: usize = 768 << 10;
/// With no more incidents than this, none is packed as long as there is room.
const FEW: usize = 64;
/// So many of a group are first choice for staying as they are.
const FIRST: usize = 5;
/// Incidents in a block: one is unfolded at a time, and should not cost a megabyte.
const IN_BLOCK: usize = 32;

/// Decides what is packed, and collects it.
pub(super) struct Packer {
    room: usize,
    few: bool,
    current: Vec<String>,
    blocks: Vec<Vec<u8>>,
}

impl Packer {
    /// For so many incidents.
    pub(super) const fn new(incidents: usize) -> Self {
        Self { room: PLAIN, few: incidents <= FEW, current: Vec::new(), blocks: Vec::new() }
    }

    /// Puts the details of the `place`th incident of a group into the page, or keeps them for a block: then its number and the position in
    /// it.
    pub(super) fn put(&mut self, html: &mut Html, body: Html, place: usize) -> Option<(usize, usize)> {
        if (self.few || place < FIRST) && body.len() <= self.room {
            self.room -= body.len();
            html.raw("<noscript>").append(&body).raw("</noscript>");
            return None;
        }
        let position = (self.blocks.len(), self.current.len());
        self.current.push(body.into_string());
        if self.current.len() == IN_BLOCK {
            self.close();
        }
        Some(position)
    }

    fn close(&mut self) {
        // A list of strings is always JSON.
        let text = serde_json::to_string(&std::mem::take(&mut self.current)).unwrap_or_default();
        self.blocks.push(deflated(text.as_bytes()));
    }

    /// Writes the blocks.
    pub(super) fn finish(mut self, html: &mut Html) {
        if !self.current.is_empty() {
            self.close();
        }
        if self.blocks.is_empty() {
            return;
        }
        html.raw("<noscript><p class=dim>The first incidents of a kind are complete; of the others only a script can unfold the details.</p></noscript>\n");
        for block in &self.blocks {
            html.raw("<template class=packed>").base64(block).raw("</template>\n");
        }
    }
}

/// RFC 1950, what browsers call `deflate`.
fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut compressor = Compress::new(Compression::default(), true);
    let mut out = Vec::with_capacity(bytes.len() / 4 + 64);
    loop {
        let read = usize::try_from(compressor.total_in()).unwrap_or(bytes.len());
        let rest = bytes.get(read..).unwrap_or_default();
        match compressor.compress_vec(rest, &mut out, FlushCompress::Finish) {
            Ok(Status::StreamEnd) | Err(_) => return out,
            Ok(Status::Ok | Status::BufError) => out.reserve(out.capacity().max(64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn body(text: &str) -> Html {
        let mut html = Html::default();
        html.text(text);
        html
    }

    #[test]
    fn what_is_packed_is_whole() {
        let text = format!("<i>\u{202e}{}", "abc ü ".repeat(40_000));
        let packed = deflated(text.as_bytes());
        assert!(packed.len() < text.len() / 20);
        let mut again = String::new();
        flate2::read::ZlibDecoder::new(packed.as_slice()).read_to_string(&mut again).unwrap();
        assert_eq!(again, text);
        assert!(!deflated(b"").is_empty());
    }

    #[test]
    fn few_stay_as_they_are_and_many_are_packed() {
        let mut html = Html::default();
        let mut few = Packer::new(FEW);
        assert!((0..FEW).all(|place| few.put(&mut html, body("x"), place).is_none()));
        few.finish(&mut html);
        assert!(!html.into_string().contains("<template"));

        let mut html = Html::default();
        let mut many = Packer::new(1_000);
        let places: Vec<_> = (0..100).filter_map(|place| many.put(&mut html, body("<b>"), place)).collect();
        assert_eq!((places.len(), places[0], places[40]), (95, (0, 0), (1, 8)));
        many.finish(&mut html);
        let page = html.into_string();
        assert_eq!(page.matches("<template class=packed>").count(), 3);
        assert_eq!(page.matches("&lt;b&gt;").count(), FIRST);

        let mut html = Html::default();
        let mut large = Packer::new(2);
        assert!(large.put(&mut html, body(&"x".repeat(PLAIN + 1)), 0).is_some());
    }
}
