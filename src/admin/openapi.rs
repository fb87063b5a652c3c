//! The API described by itself: an OpenAPI 3.1 document made from the same table as the routes.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema as JsonSchemaOf};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApiBuilder, Ref, RefOr, Required, Schema};

use super::error::ProblemBody;

/// Where named schemas are.
const SCHEMAS: &str = "/components/schemas";

/// One way to call the API.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Endpoint {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// What it does.
    what: &'static str,
    #[serde(skip)]
    pub(super) who: Who,
    #[serde(skip)]
    parameters: &'static [(&'static str, &'static str)],
    #[serde(skip)]
    body: Option<Shape>,
    #[serde(skip)]
    answers: Vec<(u16, &'static str, Shape)>,
}

/// Who may call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Anybody: a probe.
    Anybody,
    /// Whoever may look.
    Viewer,
    /// Whoever may act.
    Operator,
    /// Whoever has the link, and nobody else.
    Link,
}

/// What a body looks like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// JSON of a type.
    Json(fn(&mut SchemaGenerator) -> JsonSchemaOf),
    /// Text of this media type.
    Text(&'static str),
    /// JSON of a type, or text of this media type.
    Either(fn(&mut SchemaGenerator) -> JsonSchemaOf, &'static str),
}

/// JSON of a type.
pub(super) fn of<T: JsonSchema>() -> Shape {
    Shape::Json(schema::<T>)
}

/// JSON of a type, or text of a media type.
pub(super) fn either<T: JsonSchema>(text: &'static str) -> Shape {
    Shape::Either(schema::<T>, text)
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> JsonSchemaOf {
    generator.subschema_for::<T>()
}

impl Endpoint {
    pub(super) fn new(method: &'static str, path: &'static str, what: &'static str, who: Who) -> Self {
        Self {
            method,
            path,
            what,
            who,
            parameters: &[],
            body: None,
            answers: Vec::new(),
        }
    }

    /// With these parameters of the query, each with what it means.
    pub(super) fn query(mut self, parameters: &'static [(&'static str, &'static str)]) -> Self {
        self.parameters = parameters;
        self
    }

    /// With a body.
    pub(super) fn takes(mut self, body: Shape) -> Self {
        self.body = Some(body);
        self
    }

    /// With an answer.
    pub(super) fn gives(mut self, status: u16, what: &'static str, shape: Shape) -> Self {
        self.answers.push((status, what, shape));
        self
    }

    /// With refusals of its own.
    pub(super) fn refuses(mut self, refusals: &[(u16, &'static str)]) -> Self {
        let problem = of::<ProblemBody>();
        self.answers
            .extend(refusals.iter().map(|(s, what)| (*s, *what, problem)));
        self
    }

    /// Refusals that every call may meet.
    fn common(&self) -> Vec<(u16, &'static str)> {
        let mut common = vec![
            (400, "a header, a parameter or the path cannot be read"),
            (421, "the host name is none of ours"),
            (503, "overloaded, or the engine does not answer"),
            (
                403,
                "from a page of another origin, or this token may not do that",
            ),
        ];
        if self.who != Who::Anybody {
            common.push((429, "too many wrong tokens or links came from here"));
        }
        if matches!(self.who, Who::Viewer | Who::Operator) {
            common.push((401, "no token, or none of ours"));
        }
        if self.path.contains('{') {
            common.push((404, "there is none of this name"));
        }
        if self.body.is_some() {
            common.push((413, "the body is too large"));
            common.push((415, "the body is not said to be of the right type"));
            common.push((
                422,
                "the body is not as it should be; `problems` tells every place",
            ));
        }
        common
    }
}

/// The document.
pub(super) fn document(endpoints: &[Endpoint]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.definitions_path = SCHEMAS.into();
        s.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = PathsBuilder::new();
    for endpoint in endpoints {
        let operation = operation(endpoint, &mut generator);
        let method = match endpoint.method {
            "POST" => HttpMethod::Post,
            "DELETE" => HttpMethod::Delete,
            _ => HttpMethod::Get,
        };
        paths = paths.path(endpoint.path, PathItem::new(method, operation));
    }
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let link = SecurityScheme::ApiKey(ApiKey::Query(ApiKeyValue::new("t")));
    let info = InfoBuilder::new()
        .title("fusebox")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The admin API of fusebox: what happens, and what people decide about it.",
        ));
    let document = OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(
            ComponentsBuilder::new()
                .security_scheme("token", bearer)
                .security_scheme("link", link)
                .build(),
        ))
        .build();
    let mut document = serde_json::to_value(document).unwrap_or_default();
    let schemas = Value::Object(generator.take_definitions(false));
    if let Some(components) = document.pointer_mut("/components").and_then(Value::as_object_mut) {
        components.insert("schemas".to_owned(), schemas);
    }
    document
}

fn operation(endpoint: &Endpoint, generator: &mut SchemaGenerator) -> OperationBuilder {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(id(endpoint)))
        .summary(Some(endpoint.what));
    for name in names(endpoint.path) {
        operation = operation.parameter(parameter(name, ParameterIn::Path, "Its name, percent-encoded."));
    }
    for (name, what) in endpoint.parameters {
        operation = operation.parameter(parameter(name, ParameterIn::Query, what));
    }
    if let Some(body) = endpoint.body {
        let mut request = RequestBodyBuilder::new().required(Some(Required::False));
        for (kind, schema) in contents(body, generator) {
            request = request.content(kind, ContentBuilder::new().schema(Some(schema)));
        }
        operation = operation.request_body(Some(request.build()));
    }
    let mut told: Vec<u16> = Vec::new();
    for (status, what, shape) in &endpoint.answers {
        told.push(*status);
        operation = operation.response(status.to_string(), answer(what, *shape, generator));
    }
    for (status, what) in endpoint.common() {
        if !told.contains(&status) {
            let answer = answer(what, of::<ProblemBody>(), generator);
            operation = operation.response(status.to_string(), answer);
        }
    }
    let none: [&str; 0] = [];
    match endpoint.who {
        Who::Anybody => operation,
        Who::Link => operation.security(SecurityRequirement::new("link", none)),
        Who::Viewer | Who::Operator => operation.security(SecurityRequirement::new("token", none)),
    }
}

fn answer(what: &str, shape: Shape, generator: &mut SchemaGenerator) -> RefOr<utoipa::openapi::Response> {
    let mut response = ResponseBuilder::new().description(what);
    for (kind, schema) in contents(shape, generator) {
        response = response.content(kind, ContentBuilder::new().schema(Some(schema)));
    }
    RefOr::T(response.build())
}

fn contents(shape: Shape, generator: &mut SchemaGenerator) -> Vec<(&'static str, RefOr<Schema>)> {
    let text = || RefOr::from(Schema::from(ObjectBuilder::new().schema_type(Type::String)));
    match shape {
        Shape::Json(make) => vec![("application/json", referred(&make(generator)))],
        Shape::Text(kind) => vec![(kind, text())],
        Shape::Either(make, kind) => vec![("application/json", referred(&make(generator))), (kind, text())],
    }
}

/// A named schema, a list of one, or anything.
fn referred(schema: &JsonSchemaOf) -> RefOr<Schema> {
    let at = |pointer: &str| schema.pointer(pointer).and_then(Value::as_str);
    let to = |name: &str| Ref::new(name.to_owned());
    match (at("/$ref"), at("/items/$ref")) {
        (Some(name), _) => RefOr::Ref(to(name)),
        (None, Some(name)) => RefOr::from(Schema::from(ArrayBuilder::new().items(to(name)))),
        (None, None) => RefOr::from(Schema::from(ObjectBuilder::new())),
    }
}

fn parameter(name: &str, place: ParameterIn, what: &str) -> ParameterBuilder {
    let required = matches!(place, ParameterIn::Path);
    ParameterBuilder::new()
        .name(name)
        .required(if required { Required::True } else { Required::False })
        .parameter_in(place)
        .description(Some(what))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
}

/// The names in braces of a path.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn id(endpoint: &Endpoint) -> String {
    let words = endpoint.path.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|w| !w.is_empty()).collect();
    let words = if words.is_empty() { vec!["index"] } else { words };
    format!("{}_{}", endpoint.method.to_ascii_lowercase(), words.join("_"))
}

/// What `GET /` gives.
pub(super) fn index(endpoints: &[Endpoint]) -> Value {
    json!({
        "name": "fusebox",
        "version": env!("CARGO_PKG_VERSION"),
        "openapi": "/openapi.json",
        "endpoints": endpoints,
    })
}
