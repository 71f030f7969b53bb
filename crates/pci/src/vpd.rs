// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Vital product data: product name and keywords in the form of PCI 3.0,
//! appendix I.

/// An image with a product name and read-only keywords such as `PN`, `SN`,
/// `EC`. A checksum follows the keywords. Texts are cut at 255 bytes.
#[must_use]
pub fn image(product: &str, keywords: &[([u8; 2], &str)]) -> Vec<u8> {
    let mut fields = Vec::new();
    for (name, text) in keywords {
        let text = &text.as_bytes()[..text.len().min(255)];
        fields.extend_from_slice(name);
        fields.push(text.len() as u8);
        fields.extend_from_slice(text);
    }
    let product = &product.as_bytes()[..product.len().min(255)];
    let mut image = vec![0x82, product.len() as u8, 0];
    image.extend_from_slice(product);
    let len = fields.len() + 4;
    image.extend_from_slice(&[0x90, len as u8, (len >> 8) as u8]);
    image.extend_from_slice(&fields);
    image.extend_from_slice(b"RV\x01");
    let sum = image.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    image.push(sum.wrapping_neg());
    image.push(0x78);
    image
}
