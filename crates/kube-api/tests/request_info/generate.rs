//! Requests to compare by: corner cases by hand, and requests that are made up of what Go and Kubernetes look for.

use proptest::prelude::*;
use proptest::sample::select;

/// A method and a target.
pub(crate) type Request = (String, String);

#[rustfmt::skip]
const METHODS: &[&str] = &[
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PROPFIND", "get", "Get",
];

/// Paths of each kind, well-formed and not.
#[rustfmt::skip]
const PATHS: &[&str] = &[
    "*", "", "a", "a/b", "*?", "*?watch", "?", "?watch=1", "#", "/", "//", "///", "/?", "/??", "/#", "/healthz",
    "/healthz/", "/healthz?verbose", "/openapi/v2", "/debug/pprof/", "/debug/pprof", "/debug/pprof/profile",
    "/debug//pprof/", "/api", "/api/", "/api/v1", "/api/v1/", "//api//v1", "/apis", "/apis/apps", "/apis/apps/v1",
    "/apis/apps/v1/", "/API/v1/pods", "/apix/v1/pods", "/api/v1/pods", "/api/v1/pods/", "/api/v1/pods//",
    "//api/v1/pods", "/api//v1/pods", "/api/v1//pods", "/api//pods", "/api///pods", "/apis//v1/pods", "/apis///pods",
    "/api/v1/pods/web", "/api/v1/pods//log", "/api/v1/pods/web/log", "/api/v1/pods/web/log/more/and/more",
    "/api/v1/namespaces", "/api/v1/namespaces/", "/api/v1/namespaces/shop", "/api/v1/namespaces/shop/",
    "/api/v1/namespaces/shop/status", "/api/v1/namespaces/shop/status/x", "/api/v1/namespaces/shop/finalize",
    "/api/v1/namespaces/shop/other", "/api/v1/namespaces/shop/pods", "/api/v1/namespaces/shop/pods/",
    "/api/v1/namespaces/shop/pods/web", "/api/v1/namespaces/shop/pods/web/exec",
    "/api/v1/namespaces/shop/pods/web/attach", "/api/v1/namespaces/shop/pods/web/portforward",
    "/api/v1/namespaces/shop/pods/web/log", "/api/v1/namespaces/shop/pods/web/status",
    "/api/v1/namespaces/shop/pods/web/exec/x", "/api/v1/namespaces/shop/services/web/proxy",
    "/api/v1/namespaces/shop/services/https:web:443/proxy/a/b?c=d", "/api/v1/namespaces//pods",
    "/api/v1/namespaces///", "/api/v1/namespaces//pods/web", "/api/v1/namespaces/namespaces/namespaces/namespaces",
    "/api/v1/namespaces/status/status", "/apis/apps/v1/namespaces/shop/deployments/web/scale",
    "/apis/apps/v1/deployments", "/api/v1/watch", "/api/v1/watch/", "/api/v1/proxy", "/apis/apps/v1/watch",
    "/apis/apps/v1/proxy/", "/apis/apps/watch/v1", "/api/watch/pods", "/api/v1/watch/pods", "/api/v1/watch/pods/web",
    "/api/v1/watch/pods/web/log", "/api/v1/watch/namespaces", "/api/v1/watch/namespaces/shop",
    "/api/v1/watch/namespaces/shop/pods", "/api/v1/watch/namespaces/shop/pods/web?fieldSelector=a=b",
    "/api/v1/watch/watch/pods", "/api/v1/watch/proxy/pods/web/log", "/api/v1/proxy/watch/pods/web/log",
    "/api/v1/watch//pods", "/api/v1/proxy/pods/web", "/api/v1/proxy/pods/web/log/x",
    "/api/v1/proxy/namespaces/shop/services/web/a/b", "/api/v1/proxy/namespaces/shop", "/api/v1/proxy/namespaces",
    "/api/v1/Watch/pods", "/api/v1/pods/watch", "/api/v1/pods%2Fweb", "/api%2fv1%2fpods", "/%61pi/v1/pods",
    "/api/v1/pods/a%20b", "/api/v1/pods/a+b", "/api/v1/pods/a%2Bb", "/api/v1/pods/%25", "/api/v1/pods/%2525",
    "/api/v1/pods/%", "/api/v1/pods/%2", "/api/v1/pods/%zz", "/api/v1/pods/%%41", "/api/v1/pods/%4%31", "/%",
    "/api/v1/pods/%00", "/api/v1/pods/%0a", "/api/v1/pods/%ff", "/api/v1/pods/%e2%82%ac", "/api/v1/pods/%e2%82",
    "/api/v1/pods/%e2%82x%82%c3", "/api/v1/pods/%ed%a0%80", "/api/v1/pods/%f4%90%80%80", "/api/v1/pods/€",
    "/api/v1/pods/€%e2", "/api/v1/pods/a b", "/api/v1/pods/a\tb", "/api/v1/pods/\x7f", "/api/v1/pods/\u{85}",
    "/api/v1/pods/x#y?watch=1", "/api/v1/pods#?watch=1", "/api/v1/pods%3Fwatch=1", "/api/v1/pods/.",
    "/api/v1/../pods", "/api/v1/namespaces/./pods", "/api/v1/pods;a=b", "/api/v1/pods\\web", "/:a", "/a:b",
    "//host/api/v1/pods", "/apis/a.b.c/v1beta1/widgets/x/y", "/%2F", "/%2Fapi%2Fv1%2Fpods%2F", "/api/v1/pods/\"<>&'",
    "/api/v1/pods/a\u{2028}b",
];

/// Queries, for a list and for a deletion of many.
#[rustfmt::skip]
const QUERIES: &[&str] = &[
    "", "watch", "watch=", "watch=1", "watch=0", "watch=00", "watch=true", "watch=True", "watch=false", "watch=FALSE",
    "watch=f", "watch=no", "watch=%30", "watch=+0", "watch=0+", "watch=fal%C5%BFe", "watch=falſe",
    "watch=FALſE&limit=x", "watch=0&watch=1", "watch=1&watch=0", "watch=%zz&watch=0", "watch=%zz", "watch=1;",
    "watch=1;&watch=0", "watch=1%3B", ";watch=1", ";&watch=1", "watch;watch=1", "a=1;b=2&watch=1", "%77atch=1",
    "w%61tch", "watch%=1", "watch%3D1", "=watch", "watch==1", "watch=0=1", "&&watch&&", "?watch=1", "watch=1#x",
    "watch+=1", "+watch=1", "Watch=1", "watch%00=1", "limit=", "limit=1", "limit=+1", "limit=-1", "limit=%2B1",
    "limit=1_0", "limit=0x1", "limit=9223372036854775807", "limit=9223372036854775808", "limit=-9223372036854775808",
    "limit=-9223372036854775809", "limit=%C2%B2", "limit=x", "limit=%ff", "limit=1&limit=x", "limit=x&limit=1",
    "limit=%zz&limit=1", "limit=;&limit=1", "limit=x&watch=1", "timeoutSeconds=", "timeoutSeconds=60",
    "timeoutSeconds=1m&watch=1", "timeoutSeconds=5&watch=0", "timeoutSeconds=1.5",
    "resourceVersionMatch=what&watch=1", "sendInitialEvents=what&watch=1", "allowWatchBookmarks=what&watch=1",
    "continue=%zz&watch=1", "shardSelector=((&watch=1", "resourceVersion=x&fieldSelector=metadata.name%3Da",
    "fieldSelector=metadata.name=a", "fieldSelector=metadata.name%3Da", "fieldSelector=metadata.name==a",
    "fieldSelector=metadata.name%3D%3Da", "fieldSelector=metadata.name===a", "fieldSelector=metadata.name!=a",
    "fieldSelector=metadata.name!a", "fieldSelector=metadata.name", "fieldSelector=metadata.name=",
    "fieldSelector=metadata.name%20=a", "fieldSelector=metadata.name=%20a", "fieldSelector=metadata.name=+a",
    "fieldSelector=+metadata.name=a", "fieldSelector=metadata.namespace=a", "fieldSelector=Metadata.name=a",
    "fieldSelector=metadata.name=a,metadata.name=b", "fieldSelector=metadata.name=b,metadata.name=a",
    "fieldSelector=metadata.name==b,metadata.name=a", "fieldSelector=metadata.name=-,metadata.name==b",
    "fieldSelector=metadata.name=b,metadata.name!=a", "fieldSelector=a=b,metadata.name=c",
    "fieldSelector=,metadata.name=c,", "fieldSelector=,,", "fieldSelector==", "fieldSelector==,metadata.name=a",
    "fieldSelector=!=", "fieldSelector=a", "fieldSelector=a,metadata.name=c", "fieldSelector=metadata.name=c,a",
    "fieldSelector=metadata.name=a\\,b", "fieldSelector=metadata.name=a\\\\,a=b", "fieldSelector=metadata.name=a\\=b",
    "fieldSelector=metadata.name=a=b", "fieldSelector=metadata.name=a\\b", "fieldSelector=metadata.name=a\\",
    "fieldSelector=metadata.name\\=a", "fieldSelector=a\\,metadata.name=b", "fieldSelector=metadata.name=a\\\\\\,b",
    "fieldSelector=metadata.name=.", "fieldSelector=metadata.name=..", "fieldSelector=metadata.name=...",
    "fieldSelector=metadata.name=a%2Fb", "fieldSelector=metadata.name=a/b", "fieldSelector=metadata.name=a%25b",
    "fieldSelector=metadata.name=%zz", "fieldSelector=metadata.name=%00", "fieldSelector=metadata.name=%ff",
    "fieldSelector=metadata.name=%ff\\,", "fieldSelector=metadata.name=%80a,metadata.name=%c2%80b",
    "fieldSelector=metadata.name=€", "fieldSelector=a\\€=b", "fieldSelector=metadata.name=\\€",
    "fieldSelector=metadata.name=a;b", "fieldSelector=metadata.name=a%3Bb",
    "fieldSelector=metadata.name=a&fieldSelector=metadata.name=b", "fieldSelector=%zz&fieldSelector=metadata.name=b",
    "fieldSelector=&fieldSelector=metadata.name=b", "fieldselector=metadata.name=a",
    "field%53elector=metadata.name=a", "fieldSelector=metadata.name=a&limit=x",
    "fieldSelector=metadata.name=a&labelSelector=!", "fieldSelector=metadata.name=a&labelSelector=b",
    "fieldSelector=metadata.name=a&watch=1", "labelSelector=", "labelSelector=a", "labelSelector=a%ff",
    "labelSelector=%20", "labelSelector=%zz&labelSelector=a", "labelSelector=a&labelSelector=b",
    "labelSelector=%E2%82%AC%ff&fieldSelector=%ff", "labelSelector=a;b",
];

/// Label selectors; what they are tells whether a name is taken from the field selector beside them.
#[rustfmt::skip]
const LABEL_SELECTORS: &[&str] = &[
    "", " ", "a", " a ", "a,b", "a,", ",a", "a,,b", ",", "!a", "! a", "!!a", "!", "!a=b", "!in", "in", "notin",
    "in in (in)", "in=in", "a=b", "a==b", "a===b", "a!=b", "a!==b", "a=!b", "a = b", "a=b c", "a=", "a==", "a!=",
    "a=,b", "=a", "a=b=c", "a>1", "a<1", "a> 1", "a>", "a>x", "a>-1", "a>+1", "a>9223372036854775808", "a>=1", "a<>1",
    "a>1,b<2", "a in (b)", "a in(b)", "a in b", "a in ()", "a in (,)", "a in (,,)", "a in (b,)", "a in (,b)",
    "a in (b,,c)", "a in (b c)", "a in (b", "a in", "a in (", "a in (b))", "a in ((b))", "a in (b),c", "a in (b) c",
    "a in (b),", "a notin (b,c)", "a notin ()", "a not in (b)", "ain (b)", "a inn (b)", "a IN (b)", "a in (in,notin)",
    "a in (=)", "a in (!b)", "a in (b=)", "a\0", "\0a", "a\0b", "a\0,b", "a \0,(", "a=\0b", "!\0a", "a in (b)\0",
    "a in (b)\0\0(", "a=\0=b", "a!\0=b", "a,\0b", "a\tin\n(b)\r", "a\x0bin (b)", "a\u{a0}b", "a.b-c_d", "-a", "a-",
    ".a", "a.", "_a", "A", "0", "a=-b", "a=b-", "a=B", "a=€", "a/b", "/b", "a/", "a/b/c", "A/b", "a.b/c", "a..b/c",
    "a_b/c", "-a/b", "a-/b", "a.-b/c", "a/b=c/d", "a/-b", "a.b/C", "x = y , z notin ( a , b ), !w", "a=b,a!=b", "(a)",
    "a)", "a;b", "a|b", "a&b", "a%b", "a\\,b", "a\"b\"",
];

/// What follows a namespace, part by part.
#[rustfmt::skip]
const PARTS: &[&str] = &[
    "/pods", "/pods", "/deployments", "/services", "/nodes", "/web", "/web-0", "/log", "/exec", "/attach", "/proxy",
    "/portforward", "/status", "/scale", "/finalize", "/watch", "/namespaces", "/", "/a:b", "/x",
];

/// What paths consist of.
#[rustfmt::skip]
const PATH_PIECES: &[&str] = &[
    "/", "/", "//", "api", "apis", "v1", "apps", "watch", "proxy", "namespaces", "pods", "web", "log", "%2F", "%2f",
    "%61", "%ff", "%C3%A9", "é", "%25", "+", ".", "..", ":", ";", "#", " ",
];

/// What label selectors consist of.
#[rustfmt::skip]
const LABEL_PIECES: &[&str] = &[
    "a", "b", "in", "notin", " ", " ", "\t", "=", "!", "<", ">", "(", ")", ",", ",", "/", "-", "1", "\0", "é",
];

/// What field selectors consist of.
#[rustfmt::skip]
const FIELD_PIECES: &[&str] = &[
    "metadata.name", "metadata.name", "a", "b", "=", "=", "!", ",", "\\", "\\\\", "\\,", "\\=", ".", "/", "%", "é",
    "",
];

/// Pairs of a query that are not about what a request is for, or malformed.
#[rustfmt::skip]
const PAIRS: &[&str] = &[
    "resourceVersion=0", "continue=abc%3D", "pretty=true", "dryRun=All", "", ";", "=", "%", "watch", "a=%zz", "a;b=c",
];

/// What queries consist of.
#[rustfmt::skip]
const QUERY_PIECES: &[&str] = &[
    "watch", "limit", "fieldSelector", "metadata.name", "=", "=", "&", ";", "%", "%3D", "+", "a", "?", "#",
];

/// Names of users.
#[rustfmt::skip]
const USER_NAMES: &[&str] = &[
    "jane", "system:serviceaccount:shop:web", "system:node:n1", "", "jane@example.com", "o'neill", "<jane> & \"co\"",
];

/// What Go writes in its own way when it quotes a text.
#[rustfmt::skip]
const USER_PIECES: &[&str] = &[
    "a", "\"", "\\", "\n", "\t", "\r", "\x07", "\x08", "\x0b", "\x0c", "\0", "\x1f", "\x7f", "é", "e\u{301}", "日本",
    "😀", "\u{a0}", "\u{ad}", "\u{202e}", "\u{2028}", "\u{feff}", "\u{fffd}", "\u{e000}", "\u{10ffff}",
];

/// The corner cases.
pub(crate) fn by_hand() -> Vec<Request> {
    let mut requests = Vec::new();
    let mut push = |method: &str, target: String| requests.push((method.to_owned(), target));
    for path in PATHS {
        for method in METHODS {
            push(method, (*path).to_owned());
        }
        for query in ["?watch=1", "?fieldSelector=metadata.name%3Da&labelSelector=b"] {
            push("GET", format!("{path}{query}"));
            push("DELETE", format!("{path}{query}"));
        }
    }
    for query in QUERIES {
        for method in ["GET", "HEAD", "DELETE", "POST"] {
            push(method, format!("/api/v1/pods?{query}"));
            push(method, format!("/apis/apps/v1/namespaces/shop/deployments?{query}"));
        }
        push("GET", format!("/api/v1/pods/web?{query}"));
        push("GET", format!("/healthz?{query}"));
    }
    let a_label_of = |prefix: usize, name: usize| {
        // A prefix of labels of 63 characters, with dots between them.
        let prefix: String = (0..prefix).map(|at| if at % 64 == 63 { '.' } else { 'p' }).collect();
        let slash = if prefix.is_empty() { "" } else { "/" };
        format!("{prefix}{slash}{}", "n".repeat(name))
    };
    let mut selectors: Vec<String> = LABEL_SELECTORS.iter().map(|&selector| selector.to_owned()).collect();
    for (prefix, name) in [(0, 63), (0, 64), (253, 63), (254, 63), (253, 64), (1, 1)] {
        selectors.push(a_label_of(prefix, name));
        selectors.push(format!("a={}", a_label_of(0, name)));
        selectors.push(format!("a in ({})", a_label_of(0, name)));
    }
    for selector in selectors {
        let selector = escape(&selector, |_| true);
        push("GET", format!("/api/v1/pods?fieldSelector=metadata.name%3Dx&labelSelector={selector}"));
        push("GET", format!("/api/v1/pods?fieldSelector=metadata.name%3Dx&watch=1&labelSelector={selector}"));
    }
    for pairs in [9_999, 10_000, 10_001] {
        push("GET", format!("/api/v1/pods?watch=1{}", "&".repeat(pairs - 1)));
        push("DELETE", format!("/api/v1/pods?labelSelector=a{}", "&".repeat(pairs - 1)));
    }
    requests
}

/// Percent escapes for those characters.
fn escape(text: &str, mut is_escaped: impl FnMut(char) -> bool) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if is_escaped(character) {
            let mut bytes = [0; 4];
            escaped.extend(character.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// A text with some characters escaped: those that mean something in a target, none, or each second one.
fn escaped(text: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (text, 0..6_u8).prop_map(|(text, how)| match how {
        0 => text,
        1 => {
            let mut at = 0;
            escape(&text, |_| {
                at += 1;
                at % 2 == 0
            })
        }
        2 => escape(&text, |character| !character.is_ascii_alphanumeric() && character != ' ').replace(' ', "+"),
        _ => escape(&text, |character| !character.is_ascii_alphanumeric()),
    })
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(texts).prop_map(str::to_owned)
}

/// Joins some of these texts.
fn soup(texts: &'static [&'static str], count: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    prop::collection::vec(select(texts), count).prop_map(|texts| texts.concat())
}

/// A path that is likely to be one of a resource.
fn resource_path() -> impl Strategy<Value = String> {
    let start = one_of(&[
        "/api/v1",
        "/apis/apps/v1",
        "/apis/apps/v1",
        "/apis/example.com/v1beta1",
        "/api",
        "//api/v1",
        "/apis//v1",
    ]);
    let verb = prop_oneof![6 => Just(String::new()), 1 => one_of(&["/watch", "/proxy"])];
    let namespace = prop_oneof![
        1 => Just(String::new()),
        1 => one_of(&["/namespaces/shop", "/namespaces/kube-system", "/namespaces/", "/namespaces"]),
    ];
    // Most often one resource, for which the query counts.
    let rest = prop_oneof![2 => one_of(&["/pods", "/secrets", "/nodes"]), 3 => soup(PARTS, 0..5)];
    (start, verb, namespace, rest).prop_map(|(start, verb, namespace, rest)| start + &verb + &namespace + &rest)
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => resource_path(),
        3 => soup(PATH_PIECES, 0..12).prop_map(|path| format!("/{path}")),
        2 => escaped(resource_path()).prop_map(|path| format!("/{}", path.trim_start_matches("%2F"))),
        1 => (resource_path(), soup(&["%", "%4", "%zz", "%%", "\x01", "\x7f", "a"], 0..3))
            .prop_map(|(path, end)| path + &end),
        1 => any::<String>().prop_map(|path| format!("/{path}")),
        1 => one_of(PATHS).prop_filter("it has a query", |path| !path.contains('?')),
    ]
}

fn label_selector() -> impl Strategy<Value = String> {
    let requirement = prop_oneof![
        one_of(&["a", "!a", "app", "app.kubernetes.io/name"]),
        (
            one_of(&["a", "x.io/b", "in"]),
            one_of(&["=", "==", "!=", " = ", ">", "<"]),
            one_of(&["b", "1", "", "in", "B-c"])
        )
            .prop_map(|(key, operator, value)| key + &operator + &value),
        (one_of(&["a", "notin"]), one_of(&[" in ", " notin "]), one_of(&["(b)", "(b,c)", "()", "(,)", "( b , c )"]))
            .prop_map(|(key, operator, values)| key + &operator + &values),
    ];
    prop_oneof![
        3 => prop::collection::vec(requirement, 0..4).prop_map(|requirements| requirements.join(",")),
        2 => soup(LABEL_PIECES, 0..10),
        1 => one_of(LABEL_SELECTORS),
        1 => any::<String>(),
    ]
}

fn field_selector() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => (
            one_of(&["", "spec.nodeName=n1,", "a!=b,", ","]),
            one_of(&["=", "==", "!="]),
            one_of(&["web", "web-0", "a.b", ""]),
        )
            .prop_map(|(before, operator, name)| format!("{before}metadata.name{operator}{name}")),
        2 => soup(FIELD_PIECES, 0..10),
        1 => any::<String>(),
    ]
}

fn pair() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        one_of(&["", "0", "+5", "x", "1_0", "99999999999999999999"])
    ];
    let truth = one_of(&["", "1", "0", "true", "false", "False", "falſe", "no", " ", "00"]);
    let of = |key: &'static str, value: BoxedStrategy<String>| {
        let key = prop_oneof![8 => Just(key.to_owned()), 1 => escaped(Just(key.to_owned()))];
        (key, value).prop_map(|(key, value)| format!("{key}={value}"))
    };
    prop_oneof![
        4 => of("watch", escaped(truth).boxed()),
        2 => of("limit", escaped(number.clone()).boxed()),
        1 => of("timeoutSeconds", escaped(number).boxed()),
        4 => of("labelSelector", escaped(label_selector()).boxed()),
        4 => of("fieldSelector", escaped(field_selector()).boxed()),
        1 => one_of(QUERIES),
        1 => one_of(PAIRS),
        1 => soup(QUERY_PIECES, 0..8),
    ]
}

fn target() -> impl Strategy<Value = String> {
    let query = prop::collection::vec(pair(), 0..4).prop_map(|pairs| pairs.join("&"));
    (path(), prop_oneof![1 => Just(None), 3 => query.prop_map(Some)]).prop_map(|(path, query)| match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    })
}

/// Any request.
pub(crate) fn request() -> impl Strategy<Value = Request> {
    let method = prop_oneof![6 => Just("GET".to_owned()), 2 => Just("DELETE".to_owned()), 3 => one_of(METHODS)];
    (method, target())
}

/// The name of a user.
pub(crate) fn user() -> impl Strategy<Value = String> {
    prop_oneof![one_of(USER_NAMES), soup(USER_PIECES, 0..8)]
}
