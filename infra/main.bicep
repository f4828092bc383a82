// Everything that runnerpool needs in one resource group: the app, its storage, secrets, identity, log and the runners' network.
// Names and values that pool-config.yaml repeats (prefix, location, network) must be the same in both.

targetScope = 'resourceGroup'

@description('Where everything lives; pool-config.yaml names the same location.')
param location string = resourceGroup().location

@description('What azd calls this environment; it finds the function app by it.')
param environmentName string = 'runnerpool'

@description('name_prefix of pool-config.yaml: names of VMs and runners begin with it, and so do the names of what is made here.')
@minLength(1)
@maxLength(20)
param namePrefix string = 'hw'

@description('Tags on everything that is made here.')
param tags object = {}

// ---------------------------------------------------------------------------------------------- the function app

@description('frugal: no cost while nothing happens; fast: instances that are always warm for deliveries and wake-ups.')
@allowed(['frugal', 'fast'])
param profile string = 'frugal'

@description('Memory of an instance; 0: as the profile says.')
@allowed([0, 512, 2048, 4096])
param instanceMemoryMB int = 0

@description('Deliveries that one instance takes at a time; 0: as the profile says.')
@minValue(0)
@maxValue(1000)
param perInstanceConcurrency int = 0

@description('Groups (http) and functions (function:provision) with their instanceCount; empty: as the profile says.')
param alwaysReady array = []

@description('How far the app scales out.')
@minValue(40)
@maxValue(1000)
param maximumInstanceCount int = 40

@allowed(['3.11', '3.12', '3.13'])
param pythonVersion string = '3.13'

@description('RollingUpdate drains instances at a deployment instead of ending them (a preview in Azure).')
@allowed(['Recreate', 'RollingUpdate'])
param siteUpdateStrategy string = 'Recreate'

// ---------------------------------------------------------------------------------------------- the runners' network

@description('false: the VNet exists in this resource group. Its own properties are left alone.')
param createVirtualNetwork bool = true

@description('false: both subnets exist, the one for functions delegated to Microsoft.App/environments.')
param createSubnets bool = true

@description('false: the security group exists and lets the functions reach the agents.')
param createSecurityGroup bool = true

@description('false: the subnets made here get no NAT gateway; a firewall or a proxy of yours is their way out.')
param createNatGateway bool = true

param virtualNetworkName string = '${namePrefix}-vnet'
param runnerSubnetName string = '${namePrefix}-subnet'
param functionSubnetName string = '${namePrefix}-functions'
param securityGroupName string = '${namePrefix}-nsg'
param addressPrefix string = '10.20.0.0/16'

@description('One address a VM, and five that Azure keeps.')
param runnerSubnetPrefix string = '10.20.0.0/20'

@description('At least /27. Also who may reach the agents on the VMs.')
param functionSubnetPrefix string = '10.20.16.0/26'

@description('TCP ports on the internet that jobs may reach. GitHub needs 443; Ubuntu serves packages on 80.')
param outboundPorts array = ['443', '80']

@description('Addresses of the VNet\'s own DNS servers, where it has any: runners may ask them. Azure\'s own needs no rule.')
param dnsServers array = []

@description('Further rules of the security group, as {name, properties}; priorities from 200 to 999 come before ours.')
param securityRules array = []

// ---------------------------------------------------------------------------------------------- who may do what

@description('false where custom roles cannot be defined: built-in ones, which allow more, are assigned instead.')
param customRoles bool = true

@description('Who may set secrets and read the ledger from a command line; azd fills in who deploys. Empty: nobody.')
param operatorPrincipalId string = ''

@allowed(['User', 'Group', 'ServicePrincipal'])
param operatorPrincipalType string = 'User'

@description('Client id of a service principal that manages VMs instead of the app\'s own identity; empty: the identity does.')
param servicePrincipalClientId string = ''

@description('Object id of that service principal (of the enterprise application, not of the registration).')
param servicePrincipalObjectId string = ''

param servicePrincipalTenantId string = tenant().tenantId

// ---------------------------------------------------------------------------------------------- the app's settings

@description('Path of the pool file inside the package.')
param poolConfig string = 'pool-config.yaml'

param githubApiUrl string = 'https://api.github.com'

@description('Id of the GitHub App; empty: a token is used.')
param githubAppId string = ''
param githubAppInstallationId string = ''

param smtpHost string = ''
param smtpPort int = 587
param smtpUsername string = ''
param smtpStartTls bool = true
param alertFrom string = ''

@description('Mail addresses, separated by commas.')
param alertTo string = ''

@description('true: alerts are also posted to the address in the secret ALERT-WEBHOOK-URL.')
param alertWebhook bool = false

@description('Settings that are being rotated: the value before is honoured too, from the secret …-PREVIOUS, which must exist.')
@allowed(['GITHUB_WEBHOOK_SECRET', 'RUNNER_AGENT_KEY'])
param rotating array = []

// ---------------------------------------------------------------------------------------------- secrets

// What is given goes into the vault; what is not is left there as it is. Three are made when the vault has none.

@secure()
param githubWebhookSecret string = ''
@secure()
param runnerStatusToken string = ''
@secure()
param runnerAgentKey string = ''
@secure()
param githubToken string = ''
@secure()
param githubAppPrivateKey string = ''
@secure()
param servicePrincipalSecret string = ''
@secure()
param smtpPassword string = ''
@secure()
param alertWebhookUrl string = ''

@description('Random. Only those of the first deployment are ever used.')
@secure()
param freshWebhookSecret string = '${newGuid()}${newGuid()}'
@secure()
param freshStatusToken string = '${newGuid()}${newGuid()}'
@secure()
param freshAgentKey string = '${newGuid()}${newGuid()}'

@description('true: a deleted vault cannot be purged for 90 days. It can never be switched off again.')
param purgeProtection bool = false

// ---------------------------------------------------------------------------------------------- what it adds up to

var token = uniqueString(resourceGroup().id, namePrefix)
var compactPrefix = take(replace(namePrefix, '-', ''), 7)
var vaultName = 'kv-${compactPrefix}-${token}'
var allTags = union(tags, { 'azd-env-name': environmentName, application: 'runnerpool' })
var byServicePrincipal = !empty(servicePrincipalClientId)

var profiles = {
  frugal: {
    instanceMemoryMB: 512
    perInstanceConcurrency: 8
    alwaysReady: []
  }
  fast: {
    instanceMemoryMB: 2048
    perInstanceConcurrency: 32
    alwaysReady: [
      { name: 'http', instanceCount: 1 }
      { name: 'function:provision', instanceCount: 1 }
    ]
  }
}
var chosen = profiles[profile]

// The app takes an empty setting for one that is not set.
var plainSettings = {
  POOL_CONFIG: poolConfig
  GITHUB_API_URL: githubApiUrl
  AZURE_SUBSCRIPTION_ID: subscription().subscriptionId
  ARM_ENDPOINT: environment().resourceManager
  SMTP_HOST: smtpHost
  SMTP_PORT: string(smtpPort)
  SMTP_USERNAME: smtpUsername
  SMTP_STARTTLS: string(smtpStartTls)
  ALERT_FROM: alertFrom
  ALERT_TO: alertTo
}
// A reference to a secret that does not exist is an error in the app: each is there only where its secret is meant to be.
var secretSettings = {
  GITHUB_WEBHOOK_SECRET: '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=GITHUB-WEBHOOK-SECRET)'
  RUNNER_STATUS_TOKEN: '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=RUNNER-STATUS-TOKEN)'
  RUNNER_AGENT_KEY: '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=RUNNER-AGENT-KEY)'
}
var previousSettings = toObject(rotating, name => '${name}_PREVIOUS', name => '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=${replace(name, '_', '-')}-PREVIOUS)')
var tokenSettings = {
  GITHUB_TOKEN: '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=GITHUB-TOKEN)'
}
var githubAppSettings = {
  GITHUB_APP_ID: githubAppId
  GITHUB_APP_INSTALLATION_ID: githubAppInstallationId
  GITHUB_APP_PRIVATE_KEY: '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=GITHUB-APP-PRIVATE-KEY)'
}
var servicePrincipalSettings = {
  AZURE_TENANT_ID: servicePrincipalTenantId
  AZURE_CLIENT_ID: servicePrincipalClientId
  AZURE_CLIENT_SECRET: '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=AZURE-CLIENT-SECRET)'
}
var identitySettings = {
  AZURE_CLIENT_ID: identity.properties.clientId
}
var mailSettings = {
  SMTP_PASSWORD: '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=SMTP-PASSWORD)'
}
var alertSettings = {
  ALERT_WEBHOOK_URL: '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=ALERT-WEBHOOK-URL)'
}

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${namePrefix}-runnerpool'
  location: location
  tags: allTags
}

module network 'modules/network.bicep' = {
  name: 'runnerpool-network'
  params: {
    location: location
    tags: allTags
    namePrefix: namePrefix
    createVirtualNetwork: createVirtualNetwork
    createSubnets: createSubnets
    createSecurityGroup: createSecurityGroup
    createNatGateway: createNatGateway
    virtualNetworkName: virtualNetworkName
    runnerSubnetName: runnerSubnetName
    functionSubnetName: functionSubnetName
    securityGroupName: securityGroupName
    addressPrefix: addressPrefix
    runnerSubnetPrefix: runnerSubnetPrefix
    functionSubnetPrefix: functionSubnetPrefix
    outboundPorts: outboundPorts
    dnsServers: dnsServers
    securityRules: securityRules
  }
}

module access 'modules/access.bicep' = {
  name: 'runnerpool-access'
  params: {
    principalId: byServicePrincipal ? servicePrincipalObjectId : identity.properties.principalId
    customRoles: customRoles
    virtualNetworkName: virtualNetworkName
    runnerSubnetName: runnerSubnetName
    securityGroupName: securityGroupName
  }
  dependsOn: [network]
}

module storage 'modules/storage.bicep' = {
  name: 'runnerpool-storage'
  params: {
    location: location
    tags: allTags
    accountName: '${compactPrefix}${token}'
    principalId: identity.properties.principalId
    servicePrincipalObjectId: servicePrincipalObjectId
    operatorPrincipalId: operatorPrincipalId
    operatorPrincipalType: operatorPrincipalType
  }
}

module vault 'modules/vault.bicep' = {
  name: 'runnerpool-vault'
  params: {
    location: location
    tags: allTags
    vaultName: vaultName
    purgeProtection: purgeProtection
    principalId: identity.properties.principalId
    operatorPrincipalId: operatorPrincipalId
    operatorPrincipalType: operatorPrincipalType
    given: {
      'GITHUB-WEBHOOK-SECRET': githubWebhookSecret
      'RUNNER-STATUS-TOKEN': runnerStatusToken
      'RUNNER-AGENT-KEY': runnerAgentKey
      'GITHUB-TOKEN': githubToken
      'GITHUB-APP-PRIVATE-KEY': githubAppPrivateKey
      'AZURE-CLIENT-SECRET': servicePrincipalSecret
      'SMTP-PASSWORD': smtpPassword
      'ALERT-WEBHOOK-URL': alertWebhookUrl
    }
    fresh: {
      'GITHUB-WEBHOOK-SECRET': freshWebhookSecret
      'RUNNER-STATUS-TOKEN': freshStatusToken
      'RUNNER-AGENT-KEY': freshAgentKey
    }
  }
}

module monitoring 'modules/monitoring.bicep' = {
  name: 'runnerpool-monitoring'
  params: {
    location: location
    tags: allTags
    namePrefix: namePrefix
    principalId: identity.properties.principalId
  }
}

module app 'modules/app.bicep' = {
  name: 'runnerpool-app'
  params: {
    location: location
    tags: allTags
    planName: '${namePrefix}-plan'
    appName: '${namePrefix}-runnerpool-${token}'
    identityId: identity.id
    identityClientId: identity.properties.clientId
    subnetId: network.outputs.functionSubnetId
    storageAccountName: storage.outputs.accountName
    packagesUrl: storage.outputs.packagesUrl
    applicationInsightsName: monitoring.outputs.applicationInsightsName
    pythonVersion: pythonVersion
    instanceMemoryMB: instanceMemoryMB == 0 ? chosen.instanceMemoryMB : instanceMemoryMB
    perInstanceConcurrency: perInstanceConcurrency == 0 ? chosen.perInstanceConcurrency : perInstanceConcurrency
    alwaysReady: empty(alwaysReady) ? chosen.alwaysReady : alwaysReady
    maximumInstanceCount: maximumInstanceCount
    siteUpdateStrategy: siteUpdateStrategy
    settings: union(
      plainSettings,
      secretSettings,
      previousSettings,
      empty(githubAppId) ? tokenSettings : githubAppSettings,
      byServicePrincipal ? servicePrincipalSettings : identitySettings,
      empty(smtpUsername) ? {} : mailSettings,
      alertWebhook ? alertSettings : {}
    )
  }
  dependsOn: [access, vault]
}

output AZURE_RESOURCE_GROUP string = resourceGroup().name
output AZURE_KEY_VAULT_NAME string = vaultName
output FUNCTION_APP_NAME string = app.outputs.appName
output STORAGE_ACCOUNT_NAME string = storage.outputs.accountName
output WEBHOOK_URL string = 'https://${app.outputs.hostName}/github/webhook'
output STATUS_URL string = 'https://${app.outputs.hostName}/runner/status'
output OUTBOUND_ADDRESS string = network.outputs.outboundAddress
