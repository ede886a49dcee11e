// Command requestinfo answers what Kubernetes itself would: each line of its input is a question in JSON, each line of
// its output the answer to the question of the same number. See README.md.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/server/filters"
	"k8s.io/klog/v2"
)

// question holds exactly one of its fields.
type question struct {
	Request   *requestQuestion
	Failure   *failureQuestion
	Forbidden *forbiddenQuestion
}

// requestQuestion asks what a request is for.
type requestQuestion struct {
	Method string
	Target string
}

// failureQuestion asks for the body of a failure that apimachinery has a constructor for.
type failureQuestion struct {
	Code              int
	Message           string
	RetryAfterSeconds int
}

// forbiddenQuestion asks for the body of the answer to a request that the authorizer refuses.
type forbiddenQuestion struct {
	User   string
	Method string
	Target string
	Why    string
}

// answer holds Error, or what was asked for.
type answer struct {
	// Error is empty, or says who refuses: "url" is the HTTP server, "request info" the filter behind it.
	Error       string               `json:"error,omitempty"`
	ErrorText   string               `json:"errorText,omitempty"`
	Info        *request.RequestInfo `json:"info,omitempty"`
	LongRunning bool                 `json:"longRunning"`
	Body        string               `json:"body,omitempty"`
}

// As pkg/controlplane/apiserver of k8s.io/kubernetes, which cannot be imported without all of Kubernetes, sets them up.
var (
	resolver = &request.RequestInfoFactory{
		APIPrefixes:          sets.NewString("api", "apis"),
		GrouplessAPIPrefixes: sets.NewString("api"),
	}
	isLongRunning = filters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"),
		sets.NewString("attach", "exec", "proxy", "log", "portforward"),
	)
)

func main() {
	// Kubernetes logs each selector that it cannot parse.
	klog.SetLogger(logr.Discard())
	if err := answerAll(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "requestinfo:", err)
		os.Exit(1)
	}
}

func answerAll(questions io.Reader, answers io.Writer) error {
	decoder := json.NewDecoder(bufio.NewReader(questions))
	buffered := bufio.NewWriter(answers)
	encoder := json.NewEncoder(buffered)
	for {
		var asked question
		if err := decoder.Decode(&asked); errors.Is(err, io.EOF) {
			return buffered.Flush()
		} else if err != nil {
			return fmt.Errorf("the question is not valid JSON: %w", err)
		}
		answered, err := answerOne(asked)
		if err != nil {
			return err
		}
		if err := encoder.Encode(answered); err != nil {
			return err
		}
	}
}

func answerOne(asked question) (answer, error) {
	switch {
	case asked.Request != nil:
		return ofRequest(*asked.Request), nil
	case asked.Failure != nil:
		return ofFailure(*asked.Failure)
	case asked.Forbidden != nil:
		return ofForbidden(*asked.Forbidden)
	default:
		return answer{}, errors.New("a question holds none of Request, Failure, Forbidden")
	}
}

func ofRequest(asked requestQuestion) answer {
	// What Go's servers for HTTP/1.1 and HTTP/2 do with the target of any method but CONNECT.
	target, err := url.ParseRequestURI(asked.Target)
	if err != nil {
		return answer{Error: "url", ErrorText: err.Error()}
	}
	req := &http.Request{Method: asked.Method, URL: target}
	info, err := resolver.NewRequestInfo(req)
	if err != nil {
		return answer{Error: "request info", ErrorText: err.Error()}
	}
	return answer{Info: info, LongRunning: isLongRunning(req, info)}
}

func ofFailure(asked failureQuestion) (answer, error) {
	var failure *apierrors.StatusError
	switch asked.Code {
	case http.StatusBadRequest:
		failure = apierrors.NewBadRequest(asked.Message)
	case http.StatusUnauthorized:
		failure = apierrors.NewUnauthorized("Unauthorized")
	case http.StatusForbidden:
		failure = apierrors.NewForbidden(schema.GroupResource{}, "", errors.New(asked.Message))
	case http.StatusRequestEntityTooLarge:
		failure = apierrors.NewRequestEntityTooLargeError(asked.Message)
	case http.StatusTooManyRequests:
		failure = apierrors.NewTooManyRequests(asked.Message, asked.RetryAfterSeconds)
	case http.StatusInternalServerError:
		failure = apierrors.NewInternalError(errors.New(asked.Message))
	case http.StatusServiceUnavailable:
		failure = apierrors.NewServiceUnavailable(asked.Message)
	case http.StatusGatewayTimeout:
		failure = apierrors.NewTimeoutError(asked.Message, asked.RetryAfterSeconds)
	case http.StatusNotFound, http.StatusMisdirectedRequest, http.StatusBadGateway:
		// apimachinery has no constructor that takes only a text. The reason is what its clients make of the bare code.
		reason := apierrors.NewGenericServerResponse(asked.Code, "", schema.GroupResource{}, "", "", 0, false).ErrStatus.Reason
		failure = &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: int32(asked.Code), Reason: reason, Message: asked.Message,
		}}
	default:
		return answer{}, fmt.Errorf("no failure is known for the code %d", asked.Code)
	}
	return ofStatus(failure)
}

func ofForbidden(asked forbiddenQuestion) (answer, error) {
	told := ofRequest(requestQuestion{Method: asked.Method, Target: asked.Target})
	if told.Error != "" {
		return told, nil
	}
	attributes := authorizer.AttributesRecord{
		User:            &user.DefaultInfo{Name: asked.User},
		Verb:            told.Info.Verb,
		Namespace:       told.Info.Namespace,
		APIGroup:        told.Info.APIGroup,
		APIVersion:      told.Info.APIVersion,
		Resource:        told.Info.Resource,
		Subresource:     told.Info.Subresource,
		Name:            told.Info.Name,
		ResourceRequest: told.Info.IsResourceRequest,
		Path:            told.Info.Path,
	}
	return ofStatus(responsewriters.ForbiddenStatusError(attributes, asked.Why))
}

// ofStatus is the body that a kube-apiserver writes for a client which asks for JSON and not for a pretty one.
func ofStatus(failure *apierrors.StatusError) (answer, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	codecs := serializer.NewCodecFactory(scheme)
	info, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeJSON)
	if !ok {
		return answer{}, errors.New("there is no serializer for JSON")
	}
	body, err := runtime.Encode(
		codecs.EncoderForVersion(info.Serializer, schema.GroupVersion{Version: "v1"}),
		responsewriters.ErrorToAPIStatus(failure),
	)
	return answer{Body: string(body)}, err
}
