//! Signatures that are none.

use serde_json::json;

use super::{Catalogue, hex, signed_by};
use crate::minting::{Signer, encode, good_claims, good_header, merged, trust_state, with};

impl Catalogue {
    pub(super) fn es256_signatures(&mut self) {
        let es256 = merged(good_header(), json!({"alg": "ES256", "kid": "p256"})).to_string();
        let claims = good_claims().to_string();
        let genuine =
            Signer::es256().sign(format!("{}.{}", encode(&es256), encode(&claims)).as_bytes());
        let (r, s) = genuine.split_at(32);
        let order = hex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
        let (zero, one) = (vec![0; 32], [vec![0; 31], vec![1]].concat());
        for (what, signature) in [
            ("r = s = 0", [zero.clone(), zero.clone()].concat()),
            ("r = 0", [zero.as_slice(), s].concat()),
            ("s = 0", [r, &zero].concat()),
            ("r = s = 1", [one.clone(), one].concat()),
            ("r = n", [order.as_slice(), s].concat()),
            ("s = n", [r, &order].concat()),
            ("r = s = n", [order.clone(), order].concat()),
            ("all ones", vec![0xff; 64]),
            ("r and s turned", [s, r].concat()),
            ("as DER", der_signature(r, s)),
            ("cut by a byte", genuine[..63].to_vec()),
            ("a byte more", [genuine.as_slice(), &[0]].concat()),
            ("a byte before", [&[0], genuine.as_slice()].concat()),
            ("twice", [genuine.as_slice(), &genuine].concat()),
            ("with the key's point", [genuine.as_slice(), &[4]].concat()),
            ("empty", Vec::new()),
        ] {
            self.add(
                format!("ES256: {what}"),
                signed_by(&es256, &claims, |_| signature.clone()),
            );
        }
    }

    pub(super) fn ed25519_signatures(&mut self) {
        let header = good_header().to_string();
        let claims = good_claims().to_string();
        let zero = vec![0; 32];
        let genuine =
            Signer::ed25519().sign(format!("{}.{}", encode(&header), encode(&claims)).as_bytes());
        let (point, scalar) = genuine.split_at(32);
        let order = hex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
        let identity = [vec![1], vec![0; 31]].concat();
        for (what, signature) in [
            ("S + L", [point, &sum(scalar, &order)].concat()),
            ("S = L", [point, &order].concat()),
            ("S = 0", [point, &zero].concat()),
            (
                "R the identity, S = 0",
                [identity.as_slice(), &zero].concat(),
            ),
            (
                "R of order two",
                [
                    hex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
                    zero.clone(),
                ]
                .concat(),
            ),
            (
                "R of order eight",
                [
                    hex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
                    zero.clone(),
                ]
                .concat(),
            ),
            ("all zeros", vec![0; 64]),
            ("all ones", vec![0xff; 64]),
            ("R and S turned", [scalar, point].concat()),
            ("cut by a byte", genuine[..63].to_vec()),
            ("a byte more", [genuine.as_slice(), &[0]].concat()),
            ("twice", [genuine.as_slice(), &genuine].concat()),
            (
                "the public key",
                trust_state()
                    .keys
                    .get("ed")
                    .unwrap()
                    .public_bytes()
                    .repeat(2),
            ),
            ("empty", Vec::new()),
        ] {
            self.add(
                format!("EdDSA: {what}"),
                signed_by(&header, &claims, |_| signature.clone()),
            );
        }
        let foreign = Signer::foreign().token(&header, &claims);
        self.add("a key that is trusted nowhere", foreign);
        let other = with(json!({}), json!({"roles": ["admin"]}));
        let (start, _) = other.rsplit_once('.').unwrap();
        self.add(
            "the signature of another token",
            format!("{start}.{}", encode(&genuine)),
        );
        self.add(
            "a signature over the claims alone",
            signed_by(&header, &claims, |_| {
                Signer::ed25519().sign(claims.as_bytes())
            }),
        );
        self.add(
            "a signature over what is not encoded",
            signed_by(&header, &claims, |_| {
                Signer::ed25519().sign(format!("{header}.{claims}").as_bytes())
            }),
        );
    }
}

/// Of two numbers, their lowest bytes first.
fn sum(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut carry = 0;
    let bytes = a.iter().zip(b).map(|(a, b)| {
        let sum = u16::from(*a) + u16::from(*b) + carry;
        carry = sum >> 8;
        sum.to_le_bytes()[0]
    });
    bytes.collect()
}

fn der_signature(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |bytes: &[u8]| [&[2, 33, 0], bytes].concat();
    let both = [integer(r), integer(s)].concat();
    [vec![0x30, u8::try_from(both.len()).unwrap()], both].concat()
}
