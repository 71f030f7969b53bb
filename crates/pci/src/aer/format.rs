// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The text format of the `aer-inject` tool (ERR-065 to ERR-067): stanzas that
//! begin with `AER`; then, in any order, `PCI_ID [dddd:]bb:dd.f` or `[DOMAIN n]
//! BUS n DEV n FN n`, `COR_STATUS` and `UNCOR_STATUS` with names or numbers,
//! `HEADER_LOG` with four numbers. Keywords may be in any case, line ends do
//! not count, `#` begins a comment, numbers are as in C. A later term of a kind
//! replaces an earlier one.

use std::fmt;

use super::Injection;
use crate::Address;

/// Text that is not in the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Reads a file of the `aer-inject` tool.
pub fn parse(text: &str) -> Result<Vec<Injection>, ParseError> {
    let mut tokens = Tokens { rest: text, line: 1, column: 1, ahead: None };
    let mut stanzas = Vec::new();
    while let Some(token) = tokens.next()? {
        if !token.is("AER") {
            return Err(token.error(format!("`{}`: an error begins with AER", token.text)));
        }
        let mut injection = Injection { place: (token.line, token.column), ..Injection::default() };
        let mut terms = 0;
        while let Some(term) = tokens.next()? {
            if term.is("AER") {
                tokens.ahead = Some(term);
                break;
            }
            tokens.term(&term, &mut injection)?;
            terms += 1;
        }
        if terms == 0 {
            return Err(token.error("an error needs something after AER: PCI_ID, COR_STATUS, UNCOR_STATUS …"));
        }
        stanzas.push(injection);
    }
    Ok(stanzas)
}

/// Names of correctable errors in the format.
pub const CORRECTABLE_KEYWORDS: [(&str, u32); 5] =
    [("RCVR", 1 << 0), ("BAD_TLP", 1 << 6), ("BAD_DLLP", 1 << 7), ("REP_ROLL", 1 << 8), ("REP_TIMER", 1 << 12)];

/// Names of uncorrectable errors in the format.
pub const UNCORRECTABLE_KEYWORDS: [(&str, u32); 11] = [
    ("TRAIN", 1 << 0),
    ("DLP", 1 << 4),
    ("POISON_TLP", 1 << 12),
    ("FCP", 1 << 13),
    ("COMP_TIME", 1 << 14),
    ("COMP_ABORT", 1 << 15),
    ("UNX_COMP", 1 << 16),
    ("RX_OVER", 1 << 17),
    ("MALF_TLP", 1 << 18),
    ("ECRC", 1 << 19),
    ("UNSUP", 1 << 20),
];

/// A word of the text.
#[derive(Clone, Debug)]
struct Token<'a> {
    text: &'a str,
    line: usize,
    column: usize,
}

impl Token<'_> {
    fn is(&self, keyword: &str) -> bool {
        self.text.eq_ignore_ascii_case(keyword)
    }

    fn is_any(&self, keywords: &[&str]) -> bool {
        keywords.iter().any(|keyword| self.is(keyword))
    }

    fn error(&self, message: impl fmt::Display) -> ParseError {
        ParseError { line: self.line, column: self.column, message: message.to_string() }
    }

    /// A number as C writes them: decimal, 0x, leading 0 for octal.
    fn number(&self) -> Option<Result<u32, ParseError>> {
        let text = self.text;
        if !text.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let (digits, radix) = match text.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None if text.len() > 1 && text.starts_with('0') => (text, 8),
            None => (text, 10),
        };
        Some(u32::from_str_radix(digits, radix).map_err(|_| self.error(format!("`{text}` is not a number of 32 bits"))))
    }
}

struct Tokens<'a> {
    rest: &'a str,
    line: usize,
    column: usize,
    ahead: Option<Token<'a>>,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>, ParseError> {
        if let Some(token) = self.ahead.take() {
            return Ok(Some(token));
        }
        self.blank();
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let (line, column) = (self.line, self.column);
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.');
        let end = self.rest.find(|c: char| !is_part(c)).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        if text.is_empty() {
            return Err(ParseError { line, column, message: format!("`{first}` cannot stand here") });
        }
        self.column += end;
        self.rest = rest;
        Ok(Some(Token { text, line, column }))
    }

    /// Passes over white space and comments.
    fn blank(&mut self) {
        let mut comment = false;
        let end = self.rest.char_indices().find(|(_, c)| {
            match c {
                '\n' => comment = false,
                '#' => comment = true,
                _ => {}
            }
            if !comment && !matches!(c, ' ' | '\t' | '\n' | '\r') {
                return true;
            }
            if *c == '\n' {
                (self.line, self.column) = (self.line + 1, 1);
            } else {
                self.column += 1;
            }
            false
        });
        self.rest = &self.rest[end.map_or(self.rest.len(), |(at, _)| at)..];
    }

    fn term(&mut self, term: &Token<'a>, injection: &mut Injection) -> Result<(), ParseError> {
        if term.is_any(&["PCI_ID", "ID"]) {
            let id = self.value(term, "[dddd:]bb:dd.f")?;
            injection.target = Some(pci_id(&id)?);
        } else if term.is("DOMAIN") {
            let domain = self.number_of(term, 0xffff)?;
            let bus = self.keyword("BUS")?;
            injection.target = Some(self.address(domain, &bus)?);
        } else if term.is("BUS") {
            injection.target = Some(self.address(0, term)?);
        } else if term.is_any(&["COR_STATUS", "COR", "CORRECTABLE"]) {
            injection.correctable = self.status(&CORRECTABLE_KEYWORDS)?;
        } else if term.is_any(&["UNCOR_STATUS", "UNCOR", "UNCORRECTABLE"]) {
            injection.uncorrectable = self.status(&UNCORRECTABLE_KEYWORDS)?;
        } else if term.is_any(&["HEADER_LOG", "HL"]) {
            for word in &mut injection.header {
                *word = self.number_of(term, u32::MAX)?;
            }
        } else {
            let text = term.text;
            return Err(term.error(format!(
                "`{text}` cannot stand here; PCI_ID, DOMAIN, BUS, COR_STATUS, UNCOR_STATUS, HEADER_LOG or AER can"
            )));
        }
        Ok(())
    }

    /// Names and numbers, none at all included.
    fn status(&mut self, names: &[(&str, u32)]) -> Result<u32, ParseError> {
        let mut bits = 0;
        while let Some(token) = self.next()? {
            let named = names.iter().find(|(name, _)| token.is(name));
            if let Some((_, bit)) = named {
                bits |= bit;
            } else if let Some(number) = token.number() {
                bits |= number?;
            } else {
                self.ahead = Some(token);
                break;
            }
        }
        Ok(bits)
    }

    /// `BUS` has been read.
    fn address(&mut self, domain: u32, bus: &Token<'a>) -> Result<Address, ParseError> {
        let bus = self.number_of(bus, 0xff)?;
        let keyword = self.keyword("DEV")?;
        let device = self.number_of(&keyword, 31)?;
        let keyword = self.keyword("FN")?;
        let function = self.number_of(&keyword, 7)?;
        Ok(Address::new(domain as u16, bus as u8, device as u8, function as u8))
    }

    fn keyword(&mut self, keyword: &'static str) -> Result<Token<'a>, ParseError> {
        match self.next()? {
            Some(token) if token.is(keyword) => Ok(token),
            Some(token) => Err(token.error(format!("`{}`: {keyword} is wanted here", token.text))),
            None => Err(self.end(keyword)),
        }
    }

    fn value(&mut self, of: &Token<'a>, wanted: &str) -> Result<Token<'a>, ParseError> {
        self.next()?.ok_or_else(|| of.error(format!("{} is not followed by {wanted}", of.text)))
    }

    fn number_of(&mut self, of: &Token<'a>, most: u32) -> Result<u32, ParseError> {
        let token = self.value(of, "a number")?;
        let number = token.number().ok_or_else(|| token.error(format!("`{}` is not a number", token.text)))??;
        if number > most {
            return Err(token.error(format!("{}: {number} is more than {most}", of.text)));
        }
        Ok(number)
    }

    fn end(&self, wanted: &str) -> ParseError {
        ParseError { line: self.line, column: self.column, message: format!("the text ends where {wanted} is wanted") }
    }
}

/// Two digits for bus and device, four for a domain, as lspci prints them.
fn pci_id(token: &Token<'_>) -> Result<Address, ParseError> {
    let text = token.text;
    let shape = |len: usize, colon: &[usize]| {
        text.len() == len
            && text.char_indices().all(|(at, c)| match c {
                ':' => colon.contains(&at),
                '.' => at == len - 2,
                _ => !colon.contains(&at) && at != len - 2,
            })
    };
    if (shape(7, &[2]) || shape(12, &[4, 7]))
        && let Ok(address) = text.parse()
    {
        return Ok(address);
    }
    Err(token.error(format!("`{text}` is not a PCI address; write it as dddd:bb:dd.f or bb:dd.f")))
}
